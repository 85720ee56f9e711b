"""Drafts of a user's personas and questions by a chat model, for a person to edit.

Made as PersonalityBench was: questions facet by facet and topic by topic, so that no facet is asked about the same few
things; personas facet by facet. The topics of the test questions are others than those of identification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npti_export.errors import NptiError
from npti_export.identification.answers import Progress
from npti_export.identification.endpoint import Endpoint, Reply, Request
from npti_export.identification.files import digest
from npti_export.traits import Facet, Pole, Trait
from npti_export.traits.material import Persona, Question
from npti_export.traits.trait_file import OwnTrait

TOPICS = (
    "work and colleagues",
    "family",
    "friends and neighbours",
    "shopping and money",
    "travel and getting about",
    "food and eating out",
    "home and housework",
    "free time and sport",
    "school and learning",
    "health and appointments",
)
TEST_TOPICS = ("celebrations", "phones and messages", "clubs and volunteering", "the weather and the garden")
A_TOPIC = 3
"""Questions for each facet and topic: with six facets 180 for identification and 72 for tests."""
A_FACET = 7
"""Personas for each facet and pole: with six facets 42 a pole, as the shipped traits have."""
MAX_TOKENS = 700
LONGEST = 600
"""Characters of a draft; what is longer is no question and no short description."""
_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])?\s*[\"“'*]*|[\"”'*\s]+$")


@dataclass(frozen=True)
class _Wish:
    """One request: so many personas of a facet and pole, or questions of a facet about a topic."""

    facet: Facet
    pole: Pole | None = None
    topic: str = ""

    def text(self, trait: Trait) -> str:
        about = (
            f"The trait {trait.name.replace('_', ' ')}: at one end people are {trait.high}; at the other, {trait.low}. "
            f"One side of it, {self.facet.name.replace('_', ' ')}: at one end, {self.facet.high}; at the other, "
            f"{self.facet.low}."
        )
        if self.pole is not None:
            end = self.facet.high if self.pole is Pole.HIGH else self.facet.low
            return (
                f"{about}\n\nWrite {A_FACET} short descriptions of very different people (age, job, place) who all are "
                f'like this: {end}. Two sentences each, in the second person, beginning with "You"; show the '
                "trait in what the person does and how the person speaks. One description a line, nothing else."
            )
        return (
            f"{about}\n\nWrite {A_TOPIC} questions about {self.topic} to ask a person in everyday life. Each sets a "
            "concrete situation in a sentence and asks what the person does, says or feels. People at the two ends "
            "must answer differently, but the question must not say which answer is wanted, nor name the trait or "
            "describe either end. One question a line, nothing else."
        )


def draft(own: OwnTrait, endpoint: Endpoint, keep_in: Path, progress: Progress | None = None) -> OwnTrait:
    """Drafts what a trait lacks: personas of a pole that has none, questions of a facet that has none.

    What a person wrote, or edited, stays as it is.

    Args:
        own: The trait, with its poles and facets described.
        endpoint: A chat model.
        keep_in: A JSON-lines file in which replies are kept as they come, so that a lost endpoint costs none of them.
        progress: Told how many more requests are answered, of ``requests_of(own)``.

    Raises:
        NptiError: If there is nothing to draft from, the server is lost, or nothing that it says can be used.
    """
    wishes = list(_wishes(own))
    replies = _kept(keep_in)
    keys = [digest(endpoint.place, endpoint.model, wish.text(own.trait)) for wish in wishes]
    missing = [at for at, key in enumerate(keys) if key not in replies]
    if progress:
        progress(len(wishes) - len(missing))

    def told(place: int, reply: Reply) -> None:
        key = keys[missing[place]]
        replies[key] = reply.text
        _append(keep_in, {"key": key, "reply": reply.text})
        if progress:
            progress(1)

    requests = [Request(({"role": "user", "content": wishes[at].text(own.trait)},), MAX_TOKENS) for at in missing]
    endpoint.ask_all(requests, told)
    return _with_drafts(own, [(wish, lines_of(replies[key])) for wish, key in zip(wishes, keys, strict=True)])


def requests_of(own: OwnTrait) -> int:
    """How many requests a draft takes.

    Raises:
        NptiError: If there are no facets to draft from.
    """
    return len(list(_wishes(own)))


def lines_of(reply: str) -> list[str]:
    """The lines of a reply without numbers, dashes and quotation marks, and without thinking and what is unprintable.

    >>> lines_of('Sure:\\n\\n1. "What do you wear?"\\n- You bow.')
    ['Sure:', 'What do you wear?', 'You bow.']
    """
    said = re.sub(r"<think>.*", "", reply.rpartition("</think>")[2], flags=re.DOTALL)  # the prompt may open it
    printable = ("".join(c for c in line if c.isprintable()) for line in said.splitlines())
    return [text for line in printable if (text := _MARK.sub("", line)) and len(text) <= LONGEST]


def _wishes(own: OwnTrait) -> Iterator[_Wish]:
    if not own.trait.facets:
        raise NptiError(f"{own.trait.name} has no facets to draft from; describe some in the file first.")
    for facet in own.trait.facets:
        yield from (_Wish(facet, pole) for pole in Pole if not own.personas_of(pole))
        for there, topics in ((own.questions, TOPICS), (own.test_questions, TEST_TOPICS)):
            if not any(question.facet == facet.name for question in there):
                yield from (_Wish(facet, topic=topic) for topic in topics)


def _with_drafts(own: OwnTrait, drafted: list[tuple[_Wish, list[str]]]) -> OwnTrait:
    name = own.trait.name
    personas, questions, test_questions = list(own.personas), list(own.questions), list(own.test_questions)
    seen = {question.text for question in [*questions, *test_questions]} | {persona.text for persona in personas}
    found = 0
    for wish, lines in drafted:
        for line in lines:
            fits = line.startswith("You") if wish.pole else line.endswith("?")
            if not fits or line in seen:
                continue
            seen.add(line)
            found += 1
            if wish.pole:
                personas.append(Persona(name, wish.pole, line))
            else:
                (questions if wish.topic in TOPICS else test_questions).append(Question(name, line, wish.facet.name))
    if drafted and not found:
        raise NptiError(
            f"None of the {len(drafted)} replies held a question or a description beginning with You; use a larger "
            "model."
        )
    return replace(own, personas=tuple(personas), questions=tuple(questions), test_questions=tuple(test_questions))


def _kept(path: Path) -> dict[str, str]:
    """Replies that a run that was broken off left; a line that is none is asked for again."""
    kept: dict[str, str] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return kept
    for line in lines:
        try:
            record: Any = json.loads(line)
            kept[str(record["key"])] = str(record["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _append(path: Path, record: dict[str, str]) -> None:
    try:
        # A kill may have left half a line, which this one must not be joined to.
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n" + json.dumps(record) + "\n")
    except OSError as error:
        raise NptiError(f"{path} cannot be written ({error.strerror}); make room, and run again.") from None
