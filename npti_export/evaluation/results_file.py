"""The JSON file of an evaluation: it can be looked at, and is read back checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from npti_export.errors import NptiError
from npti_export.evaluation.results import VERSION, Evaluation
from npti_export.identification.files import write_beside

DIGITS = 4
"""Of the figures in the file."""

_EVALUATION = TypeAdapter(Evaluation)
_NUMBERS = re.compile(r"\[\n\s+((?:-?\d[\d.e+-]*|null)(?:,\n\s+(?:-?\d[\d.e+-]*|null))*)\n\s+\]")
"""A list of numbers, one a line, as json.dumps writes it. No text holds a line end in JSON, so none is changed."""


def to_json(evaluation: Evaluation) -> str:
    """The file's text: figures rounded to four digits, one space, lists of numbers on one line."""
    text = json.dumps(_rounded(_EVALUATION.dump_python(evaluation, mode="json")), indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text) + "\n"


def write_results(path: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation, beside its place first.

    Raises:
        NptiError: If it cannot be written.
    """
    write_beside(path, to_json(evaluation).encode())


def read_results(path: Path) -> Evaluation:
    """Reads what :func:`write_results` wrote.

    Raises:
        NptiError: If it is not there, or no evaluation of this layout; the field is named.
    """
    try:
        evaluation = _EVALUATION.validate_json(path.read_bytes())
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}); `npti-export eval --output` writes it.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:200] or "the whole"
        raise NptiError(f"{path} holds no evaluation ({where}: {first['msg']}); evaluate again.") from None
    if evaluation.version != VERSION:
        raise NptiError(f"{path} has the layout {evaluation.version}; this release reads {VERSION}: evaluate again.")
    return evaluation


def _rounded(value: Any) -> Any:
    """The same with every float to four digits."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
