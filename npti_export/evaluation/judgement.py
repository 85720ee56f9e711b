"""What a judge says of one answer; the plain object that every judge returns and every report is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judgement:
    """One answer, rated on one trait by one judge.

    Args:
        question: What was asked.
        answer: What the model answered.
        trait: Name of the trait that it was rated on.
        judge: Name of the judge, for example ``openai:gpt-4o-2024-08-06``.
        score: The rating on the judge's own scale; None where there is none.
        reason: Why, in the judge's words; empty where it gives none.
        failure: Why there is no score (the judge refused, or its reply could not be read); None where there is one.
    """

    question: str
    answer: str
    trait: str
    judge: str
    score: float | None
    reason: str
    failure: str | None
