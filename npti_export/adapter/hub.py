"""The adapter's way to and from the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from npti_export.errors import NptiError

FILES = ["config.json", "README.md", "*.safetensors"]
"""All that ever goes up or comes down."""


def fetch_adapter(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Downloads an adapter into the Hub cache (or finds it there) and returns its folder; all files of one commit.

    Raises:
        NptiError: If there is no such folder or repository, or the Hub cannot be reached and it is not cached.
    """
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=FILES))
    except HFValidationError:
        raise NptiError(f"There is no folder {repo_id!r}, and that is no name of a Hub repository.") from None
    except RepositoryNotFoundError:
        raise NptiError(
            f"There is no folder {repo_id!r} and no such Hub repository that you may read; log in with 'hf auth login' "
            "if it is private."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NptiError(f"The adapter {repo_id!r} could not be fetched from the Hub ({reason}).") from None


def upload_adapter(
    save: Callable[[Path], None], repo_id: str, private: bool, message: str | None, token: str | None
) -> str:
    """Writes the adapter into a fresh folder and uploads that in one commit, so that nothing else can go up.

    Args:
        save: Writes the adapter into the folder it is given.
        repo_id: ``user/name``; made if it is not there.
        private: Whether a new repository is private.
        message: First line of the commit.
        token: Hub token; None takes the one that is logged in.

    Returns:
        The address of the repository.
    """
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            save(Path(scratch))
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=scratch,
                allow_patterns=FILES,
                commit_message=message or "Upload personality adapter",
            )
    except HFValidationError as error:
        raise NptiError(f"{repo_id!r} is no name of a Hub repository ({error}).") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise NptiError(
                f"The Hub refuses to write to {repo_id!r} ({status}); log in with 'hf auth login' and a token "
                "that may write there."
            ) from None
        raise NptiError(f"The Hub did not take the upload to {repo_id!r} ({str(error).splitlines()[0]}).") from None
    except OSError as error:
        raise NptiError(f"The upload to {repo_id!r} broke off ({error}); run the command again.") from None
    return str(address)
