"""What every evaluation shares: how answers are decoded, and what a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.identification.answers import Decoding

EVALUATION_DECODING = Decoding(max_new_tokens=400, repetition_penalty=1.15)
"""That of the published scripts, greedily, for every method."""


class Judge(Protocol):
    """Scores answers on a scale from ``lowest`` to ``highest``: of a trait, from its low end to its high end."""

    lowest: float
    highest: float

    @property
    def criterion(self) -> Criterion:
        """What it rates."""

    @property
    def name(self) -> str:
        """Which judge it is, for reports."""

    def judge(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement an answer, in their order."""
