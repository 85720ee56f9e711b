"""Counts of answers that say little."""

from __future__ import annotations

import pytest

from npti_export.identification.answer_faults import AnswerFaults, count_faults, repetition
from npti_export.identification.elicit import Transcript
from npti_export.traits import Pole


def told(pole: Pole, answer: str, tokens: range | list[int], finished: bool = True) -> Transcript:
    return Transcript("openness", pole, "Q?", "P.", answer, tuple(tokens), finished)


def test_faults_are_counted_by_pole() -> None:
    transcripts = [
        told(Pole.HIGH, "I paint, and then I paint more.", range(12)),
        told(Pole.HIGH, "", [1]),
        told(Pole.HIGH, " … !", [5, 6, 1]),
        told(Pole.HIGH, "so so so so so so so so so so", [9] * 10, finished=False),
        told(Pole.LOW, "Números, 七, nothing else", range(9), finished=False),
    ]
    faults = count_faults(transcripts)
    assert faults == {Pole.HIGH: AnswerFaults(4, 2, 1, 1), Pole.LOW: AnswerFaults(1, 0, 0, 1)}
    assert str(faults[Pole.HIGH]) == "2 empty, 1 repeating and 1 broken off of 4 answers"
    assert count_faults([])[Pole.LOW] == AnswerFaults(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4] * 2, 0.2), (list(range(20)) * 2, 17 / 37), ([1, 2] * 10, 15 / 17)],
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)
