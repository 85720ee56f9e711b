"""Names for personalities, such as warm-agent, from a file that whoever runs the server writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from npti_export.errors import NptiError
from npti_export.traits import PersonalitySpec

MAX_NAME_LENGTH = 64
_NAME = re.compile(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*")


def read_presets(path: str) -> dict[str, str]:
    """Reads a JSON object of names and personalities: ``{"warm-agent": "agreeableness+,extraversion+0.5"}``.

    Args:
        path: The file.

    Raises:
        NptiError: If it is not there or not such an object.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise NptiError(f"The presets {path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise NptiError(f"{path} is no JSON ({error}); an object of names and personalities is expected.") from None
    if not isinstance(found, dict):
        raise NptiError(f"{path} holds {type(found).__name__}; an object of names and personalities is expected.")
    for name, spec in found.items():
        check_name(name, path)
        if not isinstance(spec, str):
            raise NptiError(f"{path}: the personality of {name!r} is {type(spec).__name__}; text is expected.")
    return found


def check_name(name: str, where: str) -> None:
    """Makes sure that a name can stand for a personality and is none itself.

    Args:
        name: Lower-case words joined by hyphens, full stops or underscores.
        where: Where it was found, for the message.

    Raises:
        NptiError: If it cannot.
    """
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise NptiError(
            f"{where}: {name[:MAX_NAME_LENGTH]!r} cannot name a personality; lower-case words joined by hyphens can, "
            f"{MAX_NAME_LENGTH} letters at most."
        )
    try:
        PersonalitySpec.parse(name)  # openness-1 would stand for another personality than it spells
    except NptiError:
        return
    raise NptiError(f"{where}: {name!r} cannot name a personality, because it reads as one; choose another name.")
