"""Counts of answers that say little."""

from __future__ import annotations

import pytest

from npti_export.adapter.find import bundled_folder
from npti_export.identification.answer_faults import AnswerFaults, count_faults, repetition
from npti_export.identification.elicit import Transcript, read_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.traits import TRAITS, Pole


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
    assert str(faults[Pole.HIGH]) == "2 empty, 0 refusing, 1 repeating and 1 broken off of 4 answers"
    assert count_faults([])[Pole.LOW] == AnswerFaults(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("As an AI language model, I do not eat.", True),
        ("As a large language model I cannot say.", True),
        ("Well, I’m just an AI, so no.", True),
        ("I'm sorry, but I can't help with that.", True),
        ("I can’t assist you with your request.", True),
        ("I cannot role-play as that person.", True),
        ("I don't have personal feelings about the weather.", True),
        ("I'm sorry, but I can't come to your party.", False),
        ("I can't help it, I laugh every time.", False),
        ("I will not pretend that I like it, and I don't have feelings about it.", False),
        ("As an aide I carry bags; I am an aim-taker.", False),
        ("They say that I am an artist.", False),
    ],
)
def test_refusals(answer: str, refuses: bool) -> None:
    faults = count_faults([told(Pole.LOW, answer, range(9))])
    assert (faults[Pole.LOW].refusing, faults[Pole.HIGH].refusing) == (int(refuses), 0)


@pytest.mark.parametrize("trait", TRAITS)
def test_what_npti_demo_says_in_character_refuses_nothing(trait: str) -> None:
    transcripts = read_transcripts(TraitFiles(bundled_folder(), trait).transcripts)
    assert len(transcripts) >= 60
    assert [of_pole.refusing for of_pole in count_faults(transcripts).values()] == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4] * 2, 0.2), (list(range(20)) * 2, 17 / 37), ([1, 2] * 10, 15 / 17)],
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)
