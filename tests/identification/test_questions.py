"""Questions in blocks: balanced over facets, halves too, and the same however many are asked."""

from __future__ import annotations

from collections import Counter

import pytest

from npti_export.errors import NptiError
from npti_export.evaluation.judges.local_judge import FOLDS
from npti_export.identification.questions import (
    BLOCK_QUESTIONS,
    HELD_BACK,
    LEAST_QUESTIONS,
    Material,
    balanced,
    split_questions,
)
from npti_export.traits import TRAITS, Pole
from npti_export.traits.material import Persona, Question, shipped_personas, shipped_questions


@pytest.mark.parametrize("trait", TRAITS)
def test_blocks_of_shipped_questions_are_balanced_and_so_are_their_halves(trait: str) -> None:
    questions = shipped_questions(trait, "identification")
    facets = {question.facet for question in questions}
    material = Material.of(questions, shipped_personas(trait), 100, seed=3)
    assert [len(block) for block in material.blocks] == [2 * BLOCK_QUESTIONS] * 8 + [8]
    place = 0
    for block in material.blocks[:-1]:
        asked = list(dict.fromkeys(question for question, _ in block))
        assert len(asked) == BLOCK_QUESTIONS
        assert [persona.pole for _, persona in block] == [Pole.HIGH, Pole.LOW] * BLOCK_QUESTIONS
        halves = [[], []]
        for question in asked:
            halves[place % 2].append(question.facet)
            place += 1
        for half in halves:
            assert Counter(half) == dict.fromkeys(facets, BLOCK_QUESTIONS // 2 // len(facets))


def test_an_odd_number_of_facets_is_balanced_too() -> None:
    many = [Question("wit", f"{facet} {at}?", facet) for facet in "abc" for at in range(30)]
    ordered = balanced(many, seed=0)
    for half in (ordered[:60:2], ordered[1:60:2]):
        assert Counter(question.facet for question in half) == {"a": 10, "b": 10, "c": 10}


def test_fewer_questions_are_the_first_of_more() -> None:
    questions = shipped_questions("openness", "identification")
    few, _ = split_questions(questions, 24, seed=1)
    many, held_back = split_questions(questions, 100, seed=1)
    assert many[:24] == few
    assert len(held_back) == HELD_BACK
    assert not set(many) & set(held_back)
    everything, _ = split_questions(questions, 10_000, seed=1)
    assert len(everything) == len(questions) - HELD_BACK
    assert everything[:100] == many


def test_material_tells_another_seed_and_other_texts_apart() -> None:
    questions = [Question("wit", f"{at}?") for at in range(10 + HELD_BACK)]
    personas = [Persona("wit", pole, f"You are {pole}.") for pole in Pole]
    made = [
        Material.of(questions, personas, 8, seed=0),
        Material.of(questions, personas, 8, seed=1),
        Material.of(questions[:-1], personas, 8, seed=0),
        Material.of(questions, [*personas, Persona("wit", Pole.LOW, "You are dull.")], 8, seed=0),
    ]
    assert len({material.sha256 for material in made}) == 4
    assert made[0] == Material.of(questions, personas, 8, seed=0)
    assert made[0].sha256 == Material.of(questions, personas, 9, seed=0).sha256  # a prefix of the same plan


def test_as_many_as_the_judge_has_folds_are_needed() -> None:
    assert LEAST_QUESTIONS == FOLDS
    with pytest.raises(NptiError, match="max_questions is 4; at least 5"):
        split_questions([], 4, seed=0)
