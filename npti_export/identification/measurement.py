"""What a measurement says of itself: where its answers came from, how sure it is, and after how many questions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from npti_export.errors import NptiError
from npti_export.identification.answer_faults import AnswerFaults
from npti_export.identification.files import write_beside
from npti_export.identification.reliability import Reliability
from npti_export.traits.trait import Pole


@dataclass(frozen=True)
class Source:
    """How a file of transcripts was made.

    Args:
        made_with: Hash over all that decides the answers: model, decoding, questions, personas, seed.
        transcripts_sha256: Of the file.
        questions_sha256: Over the questions that were asked, in their order.
        personas_sha256: Over all personas.
        seed: Decided which questions come first, and which persona got which.
    """

    made_with: str
    transcripts_sha256: str
    questions_sha256: str
    personas_sha256: str
    seed: int


@dataclass(frozen=True)
class Measurement:
    """What was measured for one trait, beside the statistics themselves.

    Args:
        source: Where the answers came from.
        measured_with: Hash over all that decides the statistics: answers, model, batch size.
        statistics_sha256: Of the file of each pole.
        transcripts: Number of answers, both poles together.
        answers: How many answers each pole has, and how many of them say little.
        curve: How sure the statistics were after each block of questions, with the paper's thresholds; the last point
            is over all of them.
        versions: Of the libraries that measured.
        experts_left_out: Layer and number of the routed experts that got too few tokens at either pole for their
            neurons to be chosen; empty for a model without experts.
    """

    source: Source
    measured_with: str
    statistics_sha256: dict[Pole, str]
    transcripts: int
    answers: dict[Pole, AnswerFaults]
    curve: tuple[Reliability, ...]
    versions: dict[str, str]
    experts_left_out: tuple[tuple[int, int], ...] = ()


def write_source(path: Path, source: Source) -> None:
    """Writes how transcripts were made, beside its place first."""
    _write(path, source)


def read_source(path: Path) -> Source:
    """Reads how transcripts were made.

    Raises:
        NptiError: If it is not there or not such a file.
    """
    return _read(path, Source, "npti-export elicit")


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Writes what was measured, beside its place first."""
    _write(path, measurement)


def read_measurement(path: Path) -> Measurement:
    """Reads what was measured.

    Raises:
        NptiError: If it is not there or not such a file.
    """
    return _read(path, Measurement, "npti-export measure")


_T = TypeVar("_T", Source, Measurement)


def _write(path: Path, record: Source | Measurement) -> None:
    text = json.dumps(asdict(record), indent=2, sort_keys=True, allow_nan=False)
    write_beside(path, (text + "\n").encode())


def _read(path: Path, kind: type[_T], command: str) -> _T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NptiError(f"{path} is not there; `{command}` writes it.") from None
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise NptiError(f"{path}: field {field}: {first['msg']}; elicit and measure again.") from None
