"""A judge with a rule that anybody can apply, so that tables are known digit for digit."""

from __future__ import annotations

from collections.abc import Sequence

from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.identification.answers import Progress


class RuleJudge:
    """Counts vowels, or signs for fluency, up to 10; fails on answers that hold a mark; keeps what it was shown."""

    lowest, highest, name = 0.0, 10.0, "rule"

    def __init__(self, trait: str, criterion: Criterion = "trait", fails: str = "") -> None:
        self.trait, self.fails = trait, fails
        self.criterion: Criterion = criterion
        self.shown: list[list[tuple[str, str]]] = []

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Judgement]:
        self.shown.append(list(zip(questions, answers, strict=True)))
        if progress:
            progress(len(answers))
        return [self._judgement(question, answer) for question, answer in self.shown[-1]]

    def _judgement(self, question: str, answer: str) -> Judgement:
        failed = bool(self.fails) and self.fails in answer
        score = None if failed else rule(answer, self.criterion)
        failure = "it refused" if failed else None
        return Judgement(question, answer, self.trait, self.name, score, "why", failure, self.criterion)


def rule(answer: str, criterion: Criterion = "trait") -> float:
    """The score of an answer."""
    return float(min(10, sum(sign in "aeiou" for sign in answer) if criterion == "trait" else len(answer)))
