"""Options that the commands of identification share: which traits, and what is asked of whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import options
from npti_export.cli.one_argument import as_one
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.identification.endpoint import Endpoint
    from npti_export.traits import Trait
    from npti_export.traits.material import Persona, Question
    from npti_export.traits.trait_file import OwnTrait

output = click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the adapter; adapters/<model> unless given. Other traits there are kept.",
)
trait_files = click.option(
    "--trait-file",
    "trait_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A trait of your own, TOML as new-trait writes it; may be given several times.",
)
_all_traits = click.option("--all-traits", is_flag=True, help="All five shipped traits.")
_max_questions = click.option(
    "--max-questions",
    type=click.IntRange(5),
    default=100,
    show_default=True,
    help="Questions asked at each pole at most.",
)
_transcripts = click.option(
    "--transcripts",
    "transcripts_file",
    type=click.Path(path_type=Path),
    help="JSON lines of answers that exist (question, answer, pole high or low, persona if any); nothing is elicited.",
)
_elicit_url = click.option(
    "--elicit-url",
    help="Base URL of an OpenAI-compatible server of the same model, which answers in its place, --batch-size requests "
    "at a time (key from OPENAI_API_KEY).",
)
_elicit_model = click.option("--elicit-model", help="The server's name of the model; the only one it has unless given.")


@dataclass(frozen=True)
class Wanted:
    """Which traits a command works on.

    Args:
        names: Of all of them.
        own: Those that the user defines, by name.
    """

    names: list[str]
    own: dict[str, OwnTrait]


def wanted_traits(traits: Sequence[str], all_traits: bool, trait_files: Sequence[Path]) -> Wanted:
    """The traits that a command is to work on.

    Raises:
        click.UsageError: If none is named.
        NptiError: If one is not a shipped one, or a trait file cannot be used.
    """
    from npti_export.traits import TRAITS

    own = own_traits(trait_files)
    named = list(TRAITS) if all_traits else [name.lower() for name in traits]
    names = list(dict.fromkeys([*named, *own]))
    if not names:
        raise click.UsageError(
            "Give --trait with one of " + ", ".join(TRAITS) + ", or --all-traits, or --trait-file with one of your own."
        )
    for name in names:
        trait_of(name, own)
    return Wanted(names, own)


traits = as_one("wanted", wanted_traits, options.trait, _all_traits, trait_files)
"""Traits as options; the command gets them as one :class:`Wanted`."""


def own_traits(paths: Sequence[Path]) -> dict[str, OwnTrait]:
    """The traits that files define, by name.

    Raises:
        NptiError: If one cannot be used, or two have the same name.
    """
    if not paths:
        return {}
    from npti_export.traits.trait_file import read_trait_file

    own: dict[str, OwnTrait] = {}
    for path in paths:
        read = read_trait_file(path)
        if read.trait.name in own:
            raise NptiError(f"{path} defines {read.trait.name}, as another --trait-file does; give each trait once.")
        own[read.trait.name] = read
    return own


def trait_of(name: str, own: dict[str, OwnTrait]) -> Trait:
    """The trait of that name: the user's or a shipped one.

    Raises:
        NptiError: If there is none.
    """
    from npti_export.traits import trait_named

    if name in own:
        return own[name].trait
    try:
        return trait_named(name)
    except NptiError as error:
        raise NptiError(f"{str(error).removesuffix('.')}; --trait-file names one of your own.") from None


def personas_of(name: str, own: dict[str, OwnTrait], file: Path | None) -> list[Persona]:
    """The personas of a trait: those of a file for all traits, of its own file, or the shipped ones.

    Raises:
        NptiError: If a file cannot be read, or has none for the trait.
    """
    from npti_export.traits.material import read_personas, shipped_personas

    if file:
        return read_personas(file, name)
    return list(own[name].personas) if name in own else shipped_personas(name)


def questions_of(name: str, own: dict[str, OwnTrait], file: Path | None) -> list[Question]:
    """The questions that a trait is identified with, found in the same way.

    Raises:
        NptiError: If a file cannot be read, or has none for the trait.
    """
    from npti_export.traits.material import read_questions, shipped_questions

    if file:
        return read_questions(file, name)
    return list(own[name].questions) if name in own else shipped_questions(name, "identification")


def test_questions_of(name: str, own: dict[str, OwnTrait], file: Path | None) -> list[Question]:
    """The questions that a trait is evaluated with, found in the same way.

    Raises:
        NptiError: If a file cannot be read, or has none for the trait.
    """
    from npti_export.traits.material import read_questions, shipped_questions

    if file:
        return read_questions(file, name)
    return list(own[name].test_questions) if name in own else shipped_questions(name, "test")


@dataclass(frozen=True)
class Asked:
    """What is asked, of whom, and what is not asked because it was answered already.

    Args:
        questions_file: In place of the traits' own questions.
        personas_file: In place of their personas.
        max_questions: Questions asked at each pole at most.
        seed: Decides their order and which persona gets which.
        transcripts_file: Answers that exist.
        elicit_url: A server that answers in the model's place.
        elicit_model: Its name of the model.
    """

    questions_file: Path | None
    personas_file: Path | None
    max_questions: int
    seed: int
    transcripts_file: Path | None
    elicit_url: str | None
    elicit_model: str | None

    def readers(self, wanted: Wanted) -> dict[str, Callable[[str], Any]]:
        """What gives the questions and personas of a trait, by those names; all are read once to see that they can be.

        Raises:
            click.UsageError: If answers are both given and to be elicited by a server.
            NptiError: If a file cannot be read, or has nothing for one of the traits.
        """
        if self.transcripts_file and (self.elicit_url or self.elicit_model):
            raise click.UsageError("--transcripts gives answers and --elicit-url has a server give them; choose one.")
        for name in wanted.names:
            self._questions(wanted, name)
            personas_of(name, wanted.own, self.personas_file)
        return {
            "questions": lambda name: self._questions(wanted, name),
            "personas": lambda name: personas_of(name, wanted.own, self.personas_file),
        }

    def endpoint(self, concurrency: int) -> Endpoint | None:
        """The server, if one is to answer.

        Args:
            concurrency: How many requests it gets at a time.

        Raises:
            NptiError: If it cannot be reached.
        """
        if self.elicit_url is None:
            if self.elicit_model:
                raise click.UsageError("--elicit-model is the name that a server has; name that with --elicit-url.")
            return None
        from npti_export.identification.endpoint import Endpoint

        return Endpoint(self.elicit_url, self.elicit_model, concurrency)

    def _questions(self, wanted: Wanted, name: str) -> list[Question]:
        return questions_of(name, wanted.own, self.questions_file)


asked = as_one(
    "asked",
    Asked,
    options.questions,
    options.personas,
    _max_questions,
    options.seed,
    _transcripts,
    _elicit_url,
    _elicit_model,
)
"""What is asked as options; the command gets it as one :class:`Asked`."""
