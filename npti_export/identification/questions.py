"""Which questions are asked, in which order and blocks, and which are held back for the dose."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from npti_export.errors import NptiError
from npti_export.identification.elicit import plan
from npti_export.traits.material import Persona, Question, material_sha256

MAX_QUESTIONS = 100
"""Questions a pole at most, unless the caller says otherwise. Measured on a 5.9 M-parameter chat model against 300
questions: delta over all neurons correlates .975 at 10 questions, .993 at 30 and .998 at 100."""
BLOCK_QUESTIONS = 12
"""Questions asked at both poles between two looks at the reliability: two of each of the six facets of a shipped trait,
one in each half. Even, so that every other question stays every other one across blocks."""
ENOUGH_QUESTIONS = 30
"""No stop before so many questions a pole, however well the halves agree: the local judge, which finds the dose, is
trained on the same answers."""
HELD_BACK = 30
"""Questions kept from identification for finding the dose: five of each of the six facets of a shipped trait, and with
the usual batch of 32 rows hardly slower than 20."""
LEAST_QUESTIONS = 5
"""The folds of the local judge."""


@dataclass(frozen=True)
class Material:
    """What one trait is identified with.

    Args:
        planned: Each question with its persona, both poles of a question one after the other.
        held_back: Questions kept for finding the dose.
        personas_sha256: Over all personas.
        sha256: Over all questions and personas and the seed.
        seed: Decided the order and which persona gets which question.
    """

    planned: list[tuple[Question, Persona]]
    held_back: list[Question]
    personas_sha256: str
    sha256: str
    seed: int

    @staticmethod
    def of(questions: Sequence[Question], personas: Sequence[Persona], max_questions: int, seed: int) -> Material:
        """Plans the questions of one trait.

        Raises:
            NptiError: If there are too few questions, or a pole has no persona.
        """
        asked, held_back = split_questions(questions, max_questions, seed)
        of_personas = material_sha256(persona.text for persona in personas)
        everything = [str(seed), of_personas, *(question.text for question in questions)]
        return Material(plan(asked, personas, seed), held_back, of_personas, material_sha256(everything), seed)

    @staticmethod
    def beside(answered: Iterable[str], questions: Sequence[Question], seed: int) -> Material:
        """Only what finds the dose, where answers exist: questions that none of them answers.

        Args:
            answered: The questions that are answered.
            questions: Those that there are of the trait.
            seed: Decides which are taken.

        Raises:
            NptiError: If too few are left.
        """
        taken = set(answered)
        left = balanced([question for question in questions if question.text not in taken], seed)
        if len(left) < HELD_BACK:
            raise NptiError(
                f"The transcripts leave {len(left)} questions unanswered, and {HELD_BACK} are needed to find the dose; "
                "give more with --questions or in the trait file."
            )
        return Material([], left[:HELD_BACK], "", "", seed)

    @property
    def blocks(self) -> list[list[tuple[Question, Persona]]]:
        """The plan in blocks of questions."""
        step = 2 * BLOCK_QUESTIONS
        return [self.planned[begin : begin + step] for begin in range(0, len(self.planned), step)]


def split_questions(
    questions: Sequence[Question], max_questions: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions to ask and questions held back for the dose, both balanced over facets, in a seeded order.

    Every stretch that is a multiple of the facets holds each facet equally often, and so, over two such stretches, do
    every other question from the first on and from the second on: the halves of the split-half reliability.

    Args:
        questions: Of one trait; of equal ones the last counts.
        max_questions: How many are asked at most.
        seed: Decides the order.

    Raises:
        NptiError: If there are not enough for both.
    """
    if max_questions < LEAST_QUESTIONS:
        raise NptiError(
            f"max_questions is {max_questions}; at least {LEAST_QUESTIONS} are needed, the folds of the local judge."
        )
    ordered = balanced(list({question.text: question for question in questions}.values()), seed)
    asked = min(max_questions, len(ordered) - HELD_BACK)
    if asked < LEAST_QUESTIONS:
        raise NptiError(
            f"There are {len(ordered)} different questions; at least {HELD_BACK + LEAST_QUESTIONS} are needed, "
            f"{HELD_BACK} of them to find the dose."
        )
    return ordered[:asked], ordered[asked : asked + HELD_BACK]


def balanced(questions: Sequence[Question], seed: int) -> list[Question]:
    """All questions in a seeded order that goes round the facets.

    >>> letters = [Question("wit", letter + number, letter) for letter in "ab" for number in "123"]
    >>> "".join(question.facet for question in balanced(letters, seed=0)) in ("abbaab", "baabba")
    True
    """
    by_facet: dict[str, list[Question]] = {}
    for question in random.Random(f"questions {seed}").sample(list(questions), len(questions)):
        by_facet.setdefault(question.facet, []).append(question)
    ordered: list[Question] = []
    for at in range(max(map(len, by_facet.values()), default=0)):
        column = [facet[at] for facet in by_facet.values() if at < len(facet)]
        # With an even number of facets each would keep its parity and so its half; one step further it changes.
        turn = at % len(column) if len(column) % 2 == 0 else 0
        ordered += column[turn:] + column[:turn]
    return ordered
