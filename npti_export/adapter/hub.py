"""The adapter's way to and from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.errors
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from npti_export.adapter.card import is_generated
from npti_export.adapter.config import read_config
from npti_export.adapter.files import CARD_NAME, CONFIG_NAME, MAX_CONFIG_BYTES, read_bytes
from npti_export.errors import NptiError

# The base class of everything that the Hub's HTTP client raises; which library it is from differs between releases.
HTTPError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


def fetch_adapter(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Downloads an adapter into the Hub cache (or finds it there) and returns its folder; all files of one commit.

    The config comes first and is checked, so that the name of a model does not fetch gigabytes of weights.

    Raises:
        NptiError: If there is no such folder or repository, it holds no adapter, or the Hub cannot be reached and it
            is not cached.
    """
    with _fetching(repo_id, revision):
        folder = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[CONFIG_NAME]))
    if not (folder / CONFIG_NAME).is_file():
        raise NptiError(f"The Hub repository {repo_id!r} holds no personality adapter (there is no {CONFIG_NAME}).")
    config = read_config(read_bytes(folder / CONFIG_NAME, MAX_CONFIG_BYTES), f"{CONFIG_NAME} of {repo_id}")
    names = [CARD_NAME, CONFIG_NAME, *(trait.file for trait in config.traits.values())]
    with _fetching(repo_id, revision):
        # The last component of a snapshot's folder is its commit: a push in between cannot mix two adapters.
        return Path(snapshot_download(repo_id, revision=folder.name, token=token, allow_patterns=names))


def upload_adapter(
    contents: Mapping[str, bytes], repo_id: str, private: bool, message: str | None, token: str | None
) -> str:
    """Uploads the files of an adapter in one commit; a card that was edited on the Hub is not written over.

    Args:
        contents: The files by name; nothing else goes up.
        repo_id: ``user/name``; made if it is not there.
        private: Whether a new repository is private.
        message: First line of the commit.
        token: Hub token; None takes the one that is logged in.

    Returns:
        The address of the repository.

    Raises:
        NptiError: If the Hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    with _uploading(repo_id):
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        keep = is_generated(contents[CARD_NAME]) and _edited_on_hub(api, address.repo_id)
        api.create_commit(
            address.repo_id,
            [CommitOperationAdd(name, data) for name, data in contents.items() if not (keep and name == CARD_NAME)],
            commit_message=message or "Upload personality adapter",
        )
    return str(address)


def _edited_on_hub(api: HfApi, repo_id: str) -> bool:
    """Whether the repository has a model card that is not as this package wrote it."""
    try:
        return not is_generated(Path(api.hf_hub_download(repo_id, CARD_NAME)).read_bytes())
    except (EntryNotFoundError, RevisionNotFoundError):
        return False


@contextmanager
def _fetching(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except HFValidationError:
        raise NptiError(f"There is no folder {repo_id!r}, and that is no name of a Hub repository.") from None
    except RepositoryNotFoundError:
        raise NptiError(
            f"There is no folder {repo_id!r} and no such Hub repository that you may read; log in with 'hf auth login' "
            "if it is private."
        ) from None
    except RevisionNotFoundError:
        raise NptiError(f"The Hub repository {repo_id!r} has no revision {revision!r}.") from None
    except (HTTPError, OSError) as error:
        if _status(error) in (401, 403):
            raise NptiError(
                f"The Hub does not let you read {repo_id!r} ({_status(error)}); log in with 'hf auth login' and a "
                "token that may."
            ) from None
        raise NptiError(f"The adapter {repo_id!r} could not be fetched from the Hub ({_reason(error)}).") from None


@contextmanager
def _uploading(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise NptiError(f"{repo_id!r} is no name of a Hub repository ({_reason(error)}).") from None
    except (HTTPError, OSError, ValueError) as error:  # ValueError: the Hub finds the card's metadata wrong
        if _status(error) in (401, 403):
            raise NptiError(
                f"The Hub refuses to write to {repo_id!r} ({_status(error)}); log in with 'hf auth login' and a token "
                "that may write there."
            ) from None
        raise NptiError(f"The Hub did not take the upload to {repo_id!r} ({_reason(error)}).") from None


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _reason(error: Exception) -> str:
    """What the client says in several lines, as part of a sentence."""
    return " ".join(str(error).split())[:400].rstrip(".") or type(error).__name__
