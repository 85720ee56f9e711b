"""What the Hub's client raises, said in one sentence with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.errors
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from npti_export.errors import NptiError

# The base class of everything that the Hub's HTTP client raises; which library it is from differs between releases.
HTTPError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


@contextmanager
def fetching(api: HfApi, repo_id: str, revision: str | None) -> Iterator[None]:
    """Says in one sentence what goes wrong in a download.

    Raises:
        NptiError: In place of whatever the client raises.
    """
    try:
        yield
    except NptiError:
        raise
    except HFValidationError:
        raise NptiError(f"There is no folder {repo_id!r}, and that is no name of a Hub repository.") from None
    except GatedRepoError:
        raise NptiError(
            f"Access to {repo_id!r} has to be asked for: open its page on the Hub with the account that is logged in."
        ) from None
    except RepositoryNotFoundError:
        if kind := _other_kind(api, repo_id):
            raise NptiError(
                f"{repo_id!r} on the Hub is a {kind}; an adapter lies in a model repository, so check the name."
            ) from None
        raise NptiError(
            f"There is no folder {repo_id!r} and no such Hub repository that you may read; check the name, and log in "
            "with 'hf auth login' if it is private."
        ) from None
    except RevisionNotFoundError:
        raise NptiError(f"The Hub repository {repo_id!r} has no revision {revision!r}.") from None
    except (HTTPError, OSError, RuntimeError) as error:
        if _status(error) in (401, 403):
            raise NptiError(
                f"The Hub does not let you read {repo_id!r} ({_status(error)}); log in with 'hf auth login' and a "
                "token that may."
            ) from None
        if _may_not_ask(error):
            raise NptiError(
                f"The adapter {repo_id!r} is not whole in the cache, and the Hub may not be asked (local_files_only or "
                f"HF_HUB_OFFLINE); fetch it once with 'npti-export pull {repo_id}'."
            ) from None
        raise NptiError(
            f"The adapter {repo_id!r} could not be fetched from the Hub ({_reason(error)}); try again, whole files are "
            "kept."
        ) from None


@contextmanager
def uploading(repo_id: str) -> Iterator[None]:
    """Says in one sentence what goes wrong in an upload.

    Raises:
        NptiError: In place of whatever the client raises.
    """
    try:
        yield
    except NptiError:
        raise
    except HFValidationError as error:
        raise NptiError(f"{repo_id!r} is no name of a Hub repository ({_reason(error)}).") from None
    except RepositoryNotFoundError:
        raise NptiError(
            f"There is no Hub repository {repo_id!r} that you may see; check the name (a pull request needs one that "
            "is there)."
        ) from None
    except (HTTPError, OSError, ValueError, RuntimeError) as raised:
        # The client's upload threads raise a RuntimeError from what happened; its ValueError is the Hub finding the
        # card's metadata wrong.
        cause = raised.__cause__
        happened = cause if type(raised) is RuntimeError and isinstance(cause, Exception) else raised
        status = _status(happened)
        if status == 401:
            raise NptiError(
                f"The Hub does not know the token that you are logged in with ({status}); run 'hf auth login' again, "
                "or set HF_TOKEN."
            ) from None
        if status == 403:
            raise NptiError(
                f"You may not write to {repo_id!r} on the Hub ({status}); take a token that may write there, give a "
                "name of your own with --repo, or open a pull request with --create-pr."
            ) from None
        if status is None and isinstance(happened, HTTPError | OSError | RuntimeError):
            raise NptiError(
                f"The connection to the Hub was lost while uploading to {repo_id!r} ({_reason(happened)}); a commit is "
                "taken whole or not at all, so run the same again: what is up already is not sent twice."
            ) from None
        raise NptiError(f"The Hub did not take the upload to {repo_id!r} ({_reason(happened)}).") from None


def _other_kind(api: HfApi, repo_id: str) -> str | None:
    """What the repository is if it is no model."""
    for kind in ("dataset", "space"):
        try:
            if api.repo_exists(repo_id, repo_type=kind):
                return kind
        except (HTTPError, OSError):
            return None
    return None


def _may_not_ask(error: Exception) -> bool:
    """Whether nothing but the cache was looked at."""
    cause = error.__cause__
    return isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and (cause is None or isinstance(cause, OfflineModeIsEnabled))
    )


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _reason(error: BaseException) -> str:
    """What the client says in several lines, as part of a sentence."""
    return " ".join(str(error).split())[:400].rstrip(".") or type(error).__name__
