"""The adapter's way to and from the Hugging Face Hub: one commit down, one commit up, and no file but an adapter's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from npti_export.adapter.card import is_generated
from npti_export.adapter.config import LIBRARY_NAME, ConfigFields, TraitFields, read_config
from npti_export.adapter.files import CARD_NAME, CONFIG_NAME, MAX_CONFIG_BYTES, read_bytes
from npti_export.adapter.hub_errors import HTTPError, fetching, uploading
from npti_export.adapter.leaks import check_nothing_private
from npti_export.adapter.tensors import largest_file
from npti_export.errors import NptiError

MAX_TRAIT_BYTES = 2_000_000_000
"""A trait's file larger than this is not fetched, whatever its config declares: large models have 10⁷ neurons."""
MAX_NAME = 96
"""Longest name of a repository on the Hub."""
_NO_CONTENT = re.compile(r"\.git\w+|README\.md|LICENSE(\.\w+)?")
"""What a repository may hold that is still free for an adapter: what the Hub puts into a new one."""


@dataclass(frozen=True)
class Uploaded:
    """What an upload came to.

    Args:
        address: Of the repository, of the branch in it, or of the pull request.
        card_kept: Whether the model card on the Hub was edited by hand, so that it was left as it is.
    """

    address: str
    card_kept: bool


def fetch_adapter(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    traits: Sequence[str] | None = None,
) -> Path:
    """Downloads an adapter into the Hub cache, or finds it there; all files of one commit.

    The config comes first and is checked, and the sizes that the Hub gives are, so that the name of a model does not
    fetch gigabytes of weights.

    Args:
        repo_id: ``user/name``.
        revision: Branch, tag or commit; None is ``main``.
        token: Hub token; None takes the one that is logged in.
        cache_dir: Where downloads are kept; None is the Hub's own cache.
        local_files_only: Whether to take what was downloaded before and ask nobody.
        traits: Which traits are wanted; None is all of them.

    Returns:
        The folder of the commit in the cache.

    Raises:
        NptiError: If there is no such repository or revision, it holds no adapter, or the Hub cannot be reached and
            it is not cached.
    """
    api = HfApi(token=token)
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    with fetching(api, repo_id, revision):
        if not local_files_only:
            _check_sizes(api, repo_id, revision, {CONFIG_NAME: MAX_CONFIG_BYTES})
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG_NAME], **options))
    if not (folder / CONFIG_NAME).is_file():
        raise NptiError(f"The Hub repository {repo_id!r} holds no personality adapter (there is no {CONFIG_NAME}).")
    config = read_config(read_bytes(folder / CONFIG_NAME, MAX_CONFIG_BYTES), f"{CONFIG_NAME} of {repo_id}")
    layers = config.base_model.num_layers
    limits = {trait.file: _largest(trait, layers) for trait in wanted_traits(config, traits, repo_id).values()}
    # The last component of a snapshot's folder is its commit: a push in between cannot mix two adapters.
    commit = folder.name
    with fetching(api, repo_id, revision):
        if not local_files_only and not all((folder / name).is_file() for name in limits):
            _check_sizes(api, repo_id, commit, {CARD_NAME: MAX_CONFIG_BYTES, **limits})
        names = [CARD_NAME, CONFIG_NAME, *limits]
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=names, **options))


def wanted_traits(config: ConfigFields, wanted: Sequence[str] | None, where: str) -> dict[str, TraitFields]:
    """The traits of a config that are asked for; all of them for None.

    Raises:
        NptiError: If one is not there.
    """
    if wanted is None:
        return config.traits
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for name in names:
        if name not in config.traits:
            there = ", ".join(config.traits) or "none"
            raise NptiError(f"The adapter {where} has no trait {name!r}; it has {there}.")
    return {name: config.traits[name] for name in names}


def upload_adapter(
    contents: Mapping[str, bytes],
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    branch: str | None = None,
    token: str | None = None,
    replace_card: bool = False,
) -> Uploaded:
    """Uploads the files of an adapter in one commit; a card that was edited by hand on the Hub is kept.

    Args:
        contents: The files by name, config.json and README.md among them; nothing else goes up.
        repo_id: ``user/name``; made if it is not there.
        private: Whether a new repository is private.
        create_pr: Whether to open a pull request on a repository that is there, in place of a commit.
        message: First line of the commit.
        branch: Where the commit goes, made from ``main`` if it is not there; None is ``main``.
        token: Hub token; None takes the one that is logged in.
        replace_card: Whether the card goes over one that was edited by hand on the Hub.

    Raises:
        NptiError: If a file holds what is private, the name is taken by something else, or the Hub refuses or cannot
            be reached.
    """
    if create_pr and branch is not None:
        raise NptiError(f"A pull request is one to main, not to {branch!r}; leave out create_pr or the branch.")
    check_nothing_private(contents, token or get_token())
    repo_id = full_name(repo_id, token)
    api = HfApi(token=token)
    with uploading(repo_id):
        # private=None leaves it to the organisation whether a new repository is private; False would overrule it.
        if not create_pr:
            api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = api.model_info(repo_id, files_metadata=True)
    if private and not there.private:
        raise NptiError(
            f"The Hub repository {repo_id!r} is there already and public; make it private in its settings on the Hub, "
            "or give another name."
        )
    with uploading(repo_id):
        _check_not_taken(api, there, contents)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
            there = api.model_info(repo_id, revision=branch, files_metadata=True)
        card_kept = not replace_card and _card_was_edited(api, there, contents[CARD_NAME])
        names = [name for name in contents if not (card_kept and name == CARD_NAME)]
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, contents[name]) for name in names],
            commit_message=message or "Upload personality adapter",
            revision=branch,
            create_pr=create_pr,
        )
    repository = f"{api.endpoint}/{repo_id}"
    return Uploaded(commit.pr_url or (f"{repository}/tree/{branch}" if branch else repository), card_kept)


def full_name(repo_id: str, token: str | None = None) -> str:
    """The name of a repository with its user: the one who is logged in, where it names none.

    Raises:
        NptiError: If it is no name of a repository, or nobody is logged in.
    """
    with uploading(repo_id):
        validate_repo_id(repo_id)
        if not (token or get_token()):
            raise NptiError("You are not logged in to the Hub; run 'hf auth login', or set HF_TOKEN.")
        return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def default_name(base_model_id: str) -> str:
    """The name, without the user, that a base model's adapter gets on the Hub unless one is given.

    >>> default_name("Qwen/Qwen2.5-7B-Instruct"), default_name("my model: v2")
    ('Qwen2.5-7B-Instruct-personality', 'my-model-v2-personality')
    """
    name = re.sub(r"[^\w.]+|\.{2,}|-{2,}", "-", base_model_id.split("/")[-1], flags=re.ASCII).strip("-._")
    end = "-personality"
    return (name[: MAX_NAME // 2].rstrip("-.") + end).lstrip("-")


def _largest(trait: TraitFields, num_layers: int) -> int:
    """How many bytes a trait's file may have, by what the config declares, which may itself be beyond all measure."""
    neurons = sum(pole.neurons for pole in trait.poles.values())
    return min(MAX_TRAIT_BYTES, largest_file(neurons, len(trait.poles), num_layers))


def _check_sizes(api: HfApi, repo_id: str, revision: str | None, limits: Mapping[str, int]) -> None:
    """Refuses files that are too large for an adapter's before they fill the disk."""
    try:
        files = api.get_paths_info(repo_id, list(limits), revision=revision)
    except (HTTPError, OSError):
        return  # the download that follows says why, or finds everything in the cache
    for file in files:
        if isinstance(file, RepoFile) and file.size > limits[file.path]:
            raise NptiError(
                f"{file.path} of the Hub repository {repo_id!r} has {file.size:,} bytes, at most "
                f"{limits[file.path]:,} are expected; it is no adapter's and was not fetched."
            )


def _check_not_taken(api: HfApi, there: ModelInfo, contents: Mapping[str, bytes]) -> None:
    """Refuses to write over what is no adapter, or one of another base model."""
    config = _read_on_hub(api, there, CONFIG_NAME)
    if config is None:
        others = [file.rfilename for file in there.siblings or [] if not _NO_CONTENT.fullmatch(file.rfilename)]
        if others:
            raise NptiError(_taken(there, f"it holds {others[0]} and no adapter"))
        return
    ours = json.loads(contents[CONFIG_NAME])["base_model"]["id"]
    try:
        fields = json.loads(config)
        name, theirs = fields["library_name"], fields["base_model"]["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = theirs = None
    if name != LIBRARY_NAME:
        raise NptiError(_taken(there, f"its {CONFIG_NAME} is not that of a personality adapter"))
    if theirs != ours:
        raise NptiError(_taken(there, f"an adapter of {str(theirs)[:100]}, while this one is of {ours}"))


def _taken(there: ModelInfo, by: str) -> str:
    return f"The name {there.id!r} on the Hub is taken by something else ({by}); give another one, with --repo."


def _card_was_edited(api: HfApi, there: ModelInfo, ours: bytes) -> bool:
    """Whether the repository has a model card that is neither as this package wrote it nor the one that goes up."""
    card = _read_on_hub(api, there, CARD_NAME)
    return card is not None and card != ours and not is_generated(card)


def _read_on_hub(api: HfApi, there: ModelInfo, name: str) -> bytes | None:
    """A small file of a repository at the commit given; None if it has no such file."""
    for file in there.siblings or []:
        if file.rfilename == name:
            if (file.size or 0) > MAX_CONFIG_BYTES:
                raise NptiError(_taken(there, f"its {name} has {file.size:,} bytes"))
            return Path(api.hf_hub_download(there.id, name, revision=there.sha)).read_bytes()
    return None
