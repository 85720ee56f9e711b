"""Reading and writing the files of an adapter's folder: bounded reads, and all files or none."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from npti_export.errors import NptiError

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
MAX_CONFIG_BYTES = 16_000_000
"""A config or card larger than this is no adapter's: a config of 200 layers and 100 traits stays under a megabyte."""
MAX_TENSOR_BYTES = 2_000_000_000
"""A trait's file larger than this is refused before it is read: the largest models have some 10⁸ neurons."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file of an adapter.

    Raises:
        NptiError: If it is not there, is no plain file (a pipe would never end), or is larger than ``limit``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NptiError(f"{path} is no plain file; fetch or identify the adapter again.")
        if status.st_size > limit:
            raise NptiError(f"{path} has {status.st_size} bytes, at most {limit} are expected; it is no adapter's.")
        return path.read_bytes()
    except FileNotFoundError:
        raise NptiError(
            f"{path} is not there, so {path.parent} holds no whole personality adapter; fetch or identify it again."
        ) from None
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes every file beside its place first and renames them all then, in the order given.

    Raises:
        NptiError: If the folder cannot be written; what was there before is then still there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in contents:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as beside:
            for name, data in contents.items():
                Path(beside, name).write_bytes(data)
            for name in contents:
                os.replace(Path(beside, name), folder / name)
    except OSError as error:
        raise NptiError(f"The adapter cannot be written to {folder} ({error.strerror}); choose another one.") from None
