"""What a judge says of one answer; the plain object that every judge returns and every report is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Criterion = Literal["trait", "fluency"]
"""What an answer is rated on: one question to a judge each, so that neither colours the other."""


@dataclass(frozen=True)
class Judgement:
    """One answer, rated on one criterion by one judge.

    Args:
        question: What was asked.
        answer: What the model answered.
        trait: Name of the trait that the answers are about.
        judge: Name of the judge, for example ``openai:gpt-4o-2024-08-06``.
        score: The rating on the judge's own scale; None where there is none.
        reason: Why, in the judge's words; empty where it gives none.
        failure: Why there is no score; None where there is one. What happened, then a colon and the details.
        criterion: Whether the trait or the fluency was rated.
    """

    question: str
    answer: str
    trait: str
    judge: str
    score: float | None
    reason: str
    failure: str | None
    criterion: Criterion = "trait"


def failure_counts(failures: Iterable[str | None]) -> dict[str, int]:
    """How many judgements failed, by what happened; the most frequent first.

    Args:
        failures: Of each judgement; None, where there is a score, does not count.

    >>> failure_counts(["the judge refused: I'm sorry, no.", None, "the judge refused: I can't."])
    {'the judge refused': 2}
    """
    return dict(Counter(failure.partition(":")[0] for failure in failures if failure is not None).most_common())
