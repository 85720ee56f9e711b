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
MAX_CONFIG_BYTES = 4_000_000
"""A config or card larger than this is no adapter's: a config of 200 layers and 100 traits stays under a megabyte."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file of an adapter.

    Args:
        path: The file.
        limit: How many bytes it may have; a larger one is refused before any of it is read.

    Raises:
        NptiError: If it is not there, is a symbolic link (but for those of the Hub's cache), is no plain file (a pipe
            would never end), or is larger than ``limit``.
    """
    try:
        # The type is asked of what was opened, so that nothing can be put in its place in between.
        descriptor = os.open(_place(path), os.O_RDONLY | _OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NptiError(f"{path} is no plain file; fetch or identify the adapter again.")
            if status.st_size > limit:
                raise NptiError(f"{path} has {status.st_size} bytes, at most {limit} are expected; it is no adapter's.")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise NptiError(
            f"{path} is not there, so {path.parent} holds no whole personality adapter; fetch or identify it again."
        ) from None
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None


# Flags that Windows does not have; a pipe is then opened without waiting for its other end.
_OPEN_FLAGS = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def _place(path: Path) -> Path:
    """Where the bytes of a file lie: there, or in the blobs beside a snapshot of the Hub's cache.

    Raises:
        NptiError: If it is a link to anywhere else: somebody's private file must not come into an adapter, nor from
            there to the Hub.
    """
    if not path.is_symlink():
        return path
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if folder.parent.name != "snapshots" or target.parent != folder.parent.parent / "blobs":
        raise NptiError(f"{path} is a symbolic link, and only the file itself is read; put it there in its place.")
    return target


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
