"""Personas and questions: the ones that ship, and files of the user's or of PersonalityBench."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from npti_export.errors import NptiError
from npti_export.traits.trait import Pole, trait_named

Split = Literal["identification", "test"]


@dataclass(frozen=True)
class Persona:
    """A short second-person description of somebody at one pole."""

    trait: str
    pole: Pole
    text: str


@dataclass(frozen=True)
class Question:
    """An open, situational question; the facet is empty where a file does not say."""

    trait: str
    text: str
    facet: str = ""


def shipped_personas(trait: str) -> list[Persona]:
    """The shipped personas of both poles of a trait, 42 each.

    Raises:
        NptiError: If the trait is not a shipped one.

    >>> len(shipped_personas("openness"))
    84
    """
    trait_named(trait)
    lines = _data("personas.jsonl").splitlines()
    return [persona for line in lines if (persona := _persona(json.loads(line))).trait == trait]


def shipped_questions(trait: str, split: Split) -> list[Question]:
    """The shipped questions of a trait: 408 for identification, 92 for tests, none in both.

    Raises:
        NptiError: If the trait is not a shipped one.

    >>> len(shipped_questions("openness", "test"))
    92
    """
    trait_named(trait)
    records = map(json.loads, _data(f"questions/{trait}_{split}.jsonl").splitlines())
    return [Question(trait, record["question"], record["facet"]) for record in records]


def read_questions(path: Path, trait: str) -> list[Question]:
    """Reads a questions file: a JSON object with the key ``question`` on every line (PersonalityBench's too).

    Args:
        path: The file.
        trait: The trait they are asked for; a line that names another trait is left out.

    Raises:
        NptiError: If the file is not there, a line is broken (its number is named), or nothing is left.
    """
    questions = []
    for number, record in json_lines(path):
        text = record.get("question")
        if not isinstance(text, str) or not text.strip():
            raise NptiError(f"{path}, line {number}: no text under the key 'question'; every line needs one.")
        if str(record.get("trait") or trait).lower() == trait:
            questions.append(Question(trait, text.strip(), str(record.get("facet") or "")))
    if not questions:
        raise NptiError(f"{path} holds no questions for {trait}; one JSON object with a 'question' a line is expected.")
    return questions


def read_personas(path: Path, trait: str) -> list[Persona]:
    """Reads a personas file.

    Args:
        path: JSON lines, either ``{"trait", "pole", "text"}``, or PersonalityBench's with one description a pole and
            line under keys such as ``Openness`` and ``Openness_reversed``.
        trait: Only this trait's personas are kept.

    Raises:
        NptiError: If the file is not there, a line is broken (its number is named), or a pole has no persona.
    """
    personas: list[Persona] = []
    for number, record in json_lines(path):
        if "text" in record:
            try:
                found = [_persona(record)]
            except (KeyError, ValueError):
                raise NptiError(
                    f"{path}, line {number}: a persona needs 'trait', 'pole' (high or low) and 'text'."
                ) from None
        else:
            poles = {trait: Pole.HIGH, f"{trait}_reversed": Pole.LOW}
            found = [
                Persona(trait, poles[key.lower()], text.strip())
                for key, text in record.items()
                if key.lower() in poles and isinstance(text, str) and text.strip()
            ]
        personas += [persona for persona in found if persona.trait == trait]
    for pole in Pole:
        if not any(persona.pole is pole for persona in personas):
            raise NptiError(
                f"{path} holds no {pole} persona for {trait}; lines with 'trait', 'pole' and 'text' are expected, or "
                f"with {trait!r} and '{trait}_reversed'."
            )
    return personas


def material_sha256(texts: Iterable[str]) -> str:
    """SHA-256 over texts in their order, to tell which questions or personas an adapter came from."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their line numbers from 1; blank lines are left out.

    Raises:
        NptiError: If the file cannot be read, or a line is no JSON object.
    """
    try:
        # Not splitlines(): JSON text may hold U+2028 and others that it takes for line ends. -sig: Windows' editors.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise NptiError(f"{path} is not UTF-8 text; JSON lines are expected.") from None
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half of a character, which JSON can spell, is no text
        except (ValueError, RecursionError) as error:
            raise NptiError(f"{path}, line {number}: not JSON ({error}); one object a line is expected.") from None
        if not isinstance(record, dict):
            raise NptiError(f"{path}, line {number}: {type(record).__name__} found, a JSON object expected.")
        yield number, record


def _persona(record: dict[str, Any]) -> Persona:
    """One line of the form with ``trait``, ``pole`` and ``text``; KeyError or ValueError where it is not that."""
    if not isinstance(record["text"], str) or not record["text"].strip():
        raise ValueError
    return Persona(str(record["trait"]).lower(), Pole(str(record["pole"]).lower()), record["text"].strip())


def _data(name: str) -> str:
    return (files("npti_export.traits") / "data" / name).read_text(encoding="utf-8")
