"""Names for personalities, such as warm-agent, from a file that whoever runs the server writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from npti_export.errors import NptiError
from npti_export.traits.spec import NEUTRAL_NAME

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
        if not _NAME.fullmatch(name) or name == NEUTRAL_NAME:
            raise NptiError(f"{path}: {name!r} cannot name a personality; lower-case words joined by hyphens can.")
        if not isinstance(spec, str):
            raise NptiError(f"{path}: the personality of {name!r} is {type(spec).__name__}; text is expected.")
    return found
