"""What must not leave this machine: access tokens and local paths, looked for in every file before it goes up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from npti_export.errors import NptiError

_TOKEN = re.compile(rb"\b(?:(?:hf|gh[opsu])_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,})")
"""Access tokens of the Hub, of OpenAI and of GitHub."""
_SOMEBODYS_HOME = rb"(?:/home|/Users|[A-Za-z]:\\{1,2}Users)[/\\]+[\w.-]+"


def check_nothing_private(contents: Mapping[str, bytes], token: str | None = None) -> None:
    """Refuses files that hold an access token or a path of this machine.

    Args:
        contents: The files by name.
        token: The token in use, whatever it looks like.

    Raises:
        NptiError: With the file and what to do; a token itself is not repeated.

    >>> check_nothing_private({"README.md": b"Found with the NPTI method."})
    >>> check_nothing_private({"README.md": b"from /home/ann/models"})
    Traceback (most recent call last):
    npti_export.errors.NptiError: README.md holds a path of this machine ('/home/ann'); take it out before it goes up.
    """
    own = [re.escape(str(path).encode()) for path in (Path.home(), Path.cwd()) if path != path.parent]
    # A path begins where no word, address or longer path goes on, and its last component ends there.
    paths = re.compile(rb"(?<![\w/.:~-])(?:" + b"|".join([*own, _SOMEBODYS_HOME]) + rb")(?![\w-])")
    for name, data in contents.items():
        if _TOKEN.search(data) or (token and token.encode() in data):
            raise NptiError(f"{name} holds what looks like an access token; take it out, and revoke it on its site.")
        if found := paths.search(data):
            path = found[0].decode(errors="replace")
            raise NptiError(f"{name} holds a path of this machine ({path!r}); take it out before it goes up.")
