"""Answers that say little about a persona: empty ones, refusals, ones that repeat themselves, ones that broke off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npti_export.traits import Pole

if TYPE_CHECKING:
    from npti_export.identification.elicit import Transcript

RUN = 4
"""Tokens of the runs whose repetition is looked for (rep-4 of Welleck et al., 2020, arXiv 1908.04319)."""
REPEATING = 0.25
"""Share of an answer's runs that occurred before in it, from which on it counts as repeating; an answer that says
everything twice is at about 0.5."""
_MODEL = r"(an?|your) (ai|artificial intelligence|(large )?language model|chatbot)"
_CANNOT = r"(can(no|['’]?)t|won['’]t|(am|['’]m) (unable|not able) to)"
REFUSAL = re.compile(
    rf"\bas {_MODEL}\b|\bi( am|['’]?m) (just |only |simply )?{_MODEL}\b"
    rf"|\bi ?{_CANNOT} ((assist|help)( you)? with |fulfill? |comply with )(that|this|your) request\b"
    rf"|\bi ?{_CANNOT} role-?play\b|^(i['’]m sorry,? (but )?)?i ?{_CANNOT} (assist|help)( you)? with (that|this)\b"
    r"|\bi (don['’]t|do not) have personal (feelings|emotions|opinions|experiences|preferences|beliefs)\b",
    re.IGNORECASE,
)
"""How chat models say that they will not play somebody: a rule of thumb that would rather miss one than invent one."""


@dataclass(frozen=True)
class AnswerFaults:
    """How many answers there are of one pole, and how many say little; one answer may have several faults.

    Args:
        answers: Number of answers.
        empty: Without a letter or digit.
        repeating: A quarter or more of their runs of four tokens occurred before in them.
        broken_off: Ended by the largest number of tokens.
        refusing: In which the model says that it is a model, or will not; 0 in files of before it was counted.
    """

    answers: int
    empty: int
    repeating: int
    broken_off: int
    refusing: int = 0

    def __str__(self) -> str:
        return (
            f"{self.empty} empty, {self.refusing} refusing, {self.repeating} repeating and {self.broken_off} broken "
            f"off of {self.answers} answers"
        )


def count_faults(transcripts: Sequence[Transcript]) -> dict[Pole, AnswerFaults]:
    """Counts the faults of each pole's answers.

    Args:
        transcripts: Of one trait.
    """
    faults = {}
    for pole in Pole:
        of_pole = [transcript for transcript in transcripts if transcript.pole is pole]
        faults[pole] = AnswerFaults(
            answers=len(of_pole),
            empty=sum(not any(map(str.isalnum, transcript.answer)) for transcript in of_pole),
            repeating=sum(repetition(transcript.token_ids) >= REPEATING for transcript in of_pole),
            broken_off=sum(not transcript.finished for transcript in of_pole),
            refusing=sum(REFUSAL.search(transcript.answer) is not None for transcript in of_pole),
        )
    return faults


def repetition(tokens: Sequence[int]) -> float:
    """Share of an answer's runs of four tokens that occurred before in it; 0 for an answer shorter than a run.

    >>> repetition([1, 2, 3, 4, 5]), repetition([7] * 8)
    (0.0, 0.8)
    """
    runs = [tuple(tokens[at : at + RUN]) for at in range(len(tokens) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
