"""Where an adapter is looked for when none is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

from npti_export.errors import NptiError

DEMO_ID = "npti-demo"


def adapter_folder_name(base_model_id: str) -> str:
    """The folder of a base model's adapter.

    Raises:
        NptiError: If the id, which may come from somebody's config, is no name of a folder.

    >>> adapter_folder_name("org/name")
    'org--name'
    """
    name = base_model_id.replace("/", "--")
    if name in ("", ".", "..") or re.search(r"[\x00-\x1f\\]", name):
        raise NptiError(f"{base_model_id!r} is no name of a base model: a folder of its own could not be called so.")
    return name


def id_of_model_name(name: str) -> str:
    """The base-model id of a model as one names it: the Hub id, or the last component of a folder.

    >>> id_of_model_name("org/name"), id_of_model_name("./models/name")
    ('org/name', 'name')
    """
    name = os.path.expanduser(name)
    path = Path(name)
    if path.is_dir():
        return path.resolve().name
    return path.name if path.is_absolute() or len(path.parts) != 2 or name.startswith(".") else name


def default_adapter_folder(base_model_id: str) -> Path:
    """Where ``identify`` writes unless told otherwise: ``adapters/<base model>`` below the working directory."""
    return Path("adapters") / adapter_folder_name(base_model_id)


def cache_folder() -> Path:
    """The user's own adapters: ``$NPTI_EXPORT_HOME``, else ``npti-export`` in the user's cache."""
    if home := os.environ.get("NPTI_EXPORT_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npti-export"


def bundled_folder() -> Path:
    """The bundled adapter of the demo model: in the wheel beside the model, in a checkout in ``adapters/``."""
    package = Path(__file__).parent.parent
    in_wheel = package / "demo" / "adapters" / DEMO_ID
    return in_wheel if in_wheel.is_dir() else package.parent / "adapters" / DEMO_ID


def find_adapter(base_model_id: str) -> Path:
    """The folder of the one adapter that fits a base model.

    Looked for in ``./adapters/<base model>``, then in the user's cache, then, for the demo model, in the package.

    Args:
        base_model_id: Hub id, or the last component of the model's folder.

    Raises:
        NptiError: If there is none, or if both of the first two are there.
    """
    own = _own_folders(base_model_id)
    if len(own) > 1 and own[0].resolve() != own[1].resolve():
        raise NptiError(
            f"Two adapters fit {base_model_id}: {own[0]} and {own[1]}; name one, with --adapter (adapter= in Python)."
        )
    if own:
        return own[0]
    if base_model_id == DEMO_ID and (bundled_folder() / "config.json").is_file():
        return bundled_folder()
    name = adapter_folder_name(base_model_id)
    raise NptiError(
        f"No adapter for {base_model_id} was found in adapters/{name} or {cache_folder() / name}; make one with "
        f"'npti-export identify --model {base_model_id} --trait openness', or name a folder or Hub repository."
    )


def last_written_adapter(base_model_id: str) -> Path:
    """The folder of a base model's adapter; of the two that :func:`find_adapter` would not choose from, the newer.

    Args:
        base_model_id: Hub id, or the last component of the model's folder.

    Raises:
        NptiError: If there is none.
    """
    own = _own_folders(base_model_id)
    if len(own) > 1:
        return max(own, key=lambda folder: (folder / "config.json").stat().st_mtime_ns)
    return find_adapter(base_model_id)


def _own_folders(base_model_id: str) -> list[Path]:
    """Where the user has an adapter of a base model: below the working directory, in the cache."""
    name = adapter_folder_name(base_model_id)
    return [folder / name for folder in (Path("adapters"), cache_folder()) if (folder / name / "config.json").is_file()]
