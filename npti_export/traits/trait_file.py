"""A trait of the user's own as a TOML file: its name, its two ends, facets, personas and questions."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from npti_export.errors import NptiError
from npti_export.traits.material import Persona, Question
from npti_export.traits.spec import NEUTRAL_NAME
from npti_export.traits.trait import TRAIT_NAME, TRAITS, Facet, Pole, Trait

TEMPLATE = "trait.toml.jinja"


@dataclass(frozen=True)
class OwnTrait:
    """A trait that a user defines, and what it is identified and tested with.

    Args:
        trait: Name, poles and facets.
        personas: Of both poles.
        questions: For identification.
        test_questions: For ``eval``; none of them is among the others.
    """

    trait: Trait
    personas: tuple[Persona, ...] = ()
    questions: tuple[Question, ...] = ()
    test_questions: tuple[Question, ...] = ()

    def personas_of(self, pole: Pole) -> list[str]:
        """What the personas of a pole say."""
        return [persona.text for persona in self.personas if persona.pole is pole]


_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Facet(_Strict):
    name: _Text
    high: _Text
    low: _Text
    questions: list[_Text] = []
    test_questions: list[_Text] = []


class _Personas(_Strict):
    high: list[_Text] = []
    low: list[_Text] = []


class _File(_Strict):
    name: _Text
    high: _Text
    low: _Text
    personas: _Personas = _Personas()
    facets: list[_Facet] = []


def read_trait_file(path: Path) -> OwnTrait:
    """Reads a trait that a user defines.

    Personas and questions may be missing, as in a file that is not finished; what needs them says so.

    Args:
        path: TOML as ``npti-export new-trait`` writes it.

    Raises:
        NptiError: If it cannot be read, a field is missing, empty or unknown, the name is none or a shipped trait's, or
            a question stands there twice.
    """
    try:
        file = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError:
        raise NptiError(f"{path} is not UTF-8 text; a TOML file is expected.") from None
    except OSError as error:
        raise NptiError(
            f"{path} cannot be read ({error.strerror}); `npti-export new-trait NAME` writes such a file."
        ) from None
    except ValidationError as error:
        raise NptiError(f"{path}: {_first_problem(error)}") from None
    except (ValueError, RecursionError) as error:  # an integer of too many digits is no TOMLDecodeError
        raise NptiError(f"{path} is not TOML ({str(error)[:200]}); mend that place.") from None
    if not TRAIT_NAME.fullmatch(file.name) or file.name == NEUTRAL_NAME or file.name in TRAITS:
        raise NptiError(
            f"{path}: the name is {file.name!r}; small letters, digits and _ are expected, from a letter on, and "
            f"neither {NEUTRAL_NAME} nor a shipped trait's ({', '.join(TRAITS)})."
        )
    name = file.name
    personas = [
        Persona(name, pole, text)
        for pole, texts in ((Pole.HIGH, file.personas.high), (Pole.LOW, file.personas.low))
        for text in texts
    ]
    questions = [Question(name, text, facet.name) for facet in file.facets for text in facet.questions]
    test_questions = [Question(name, text, facet.name) for facet in file.facets for text in facet.test_questions]
    _refuse_twice(path, "facet", (facet.name for facet in file.facets))
    # A question of the tests that identification saw would be scored by a judge that learned from it.
    _refuse_twice(path, "question", (question.text for question in [*questions, *test_questions]))
    facets = tuple(Facet(facet.name, facet.high, facet.low) for facet in file.facets)
    return OwnTrait(Trait(name, file.high, file.low, facets), tuple(personas), tuple(questions), tuple(test_questions))


def trait_toml(own: OwnTrait, flagged: Mapping[str, str] | None = None) -> str:
    """A trait as TOML with comments that say what each part is for.

    Args:
        own: The trait; the descriptions may be empty, for a person to fill in.
        flagged: By text of a question or persona, what to look at; stands as a comment above it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["quoted"] = _quoted
    questions = {facet.name: _texts_of(own.questions, facet.name) for facet in own.trait.facets}
    test_questions = {facet.name: _texts_of(own.test_questions, facet.name) for facet in own.trait.facets}
    return environment.get_template(TEMPLATE).render(
        trait=own.trait,
        personas={str(pole): own.personas_of(pole) for pole in Pole},
        questions=questions,
        test_questions=test_questions,
        flagged={text: " ".join(reason.split()) for text, reason in (flagged or {}).items()},
    )


def _texts_of(questions: Iterable[Question], facet: str) -> list[str]:
    return [question.text for question in questions if question.facet == facet]


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.

    >>> tomllib.loads("a = " + _quoted('say "ü"' + chr(127)))["a"] == 'say "ü"' + chr(127)
    True
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refuse_twice(path: Path, what: str, texts: Iterable[str]) -> None:
    seen = set()
    for text in texts:
        if text in seen:
            raise NptiError(f"{path}: the {what} {text!r} stands there twice; leave one of them out.")
        seen.add(text)


def _first_problem(error: ValidationError) -> str:
    """What is wrong with the first field that is, in words of the file."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    said = {
        "missing": "is missing; every trait file needs it",
        "extra_forbidden": "is not a field of a trait file; is it spelled as the template spells it?",
        "string_too_short": "is empty; write it, or leave the line out if it stands in a list",
    }
    return f"{field} {said.get(first['type'], '– ' + first['msg'])}."
