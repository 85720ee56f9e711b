"""What every evaluation shares: how answers are decoded, how progress is shown, and what a judge is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.identification.answers import Decoding, Progress

EVALUATION_DECODING = Decoding(max_new_tokens=400, repetition_penalty=1.15)
"""That of the published scripts, greedily, for every method."""

Stage = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a stage of so many steps and gives the function that is told of steps done."""


def silent(_what: str, _steps: int) -> AbstractContextManager[Progress]:
    """A stage that shows nothing."""
    return nullcontext(lambda _done: None)


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

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Judgement]:
        """One judgement an answer, in their order; ``progress`` is told how many more are done."""
