"""The dialogues that npti-demo learned from: well-formed, varied, and apart from what it is measured with."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from npti_export.demo.corpus import Exchange, Material, read_material, write_dialogue
from npti_export.traits import TRAITS, Pole
from npti_export.traits.material import shipped_personas, shipped_questions

MATERIAL: Material = read_material()


def test_material_covers_all_facets_of_all_traits() -> None:
    for name, trait in TRAITS.items():
        written = MATERIAL.traits[name]
        assert list(written.facets) == [facet.name for facet in trait.facets]
        for scene in written.facets.values():
            assert len(scene.situations) >= 20
            assert all(len(scene.voices[pole].stances) >= 16 for pole in Pole)


def test_every_composition_is_filled_and_punctuated() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        dialogue = write_dialogue(MATERIAL, rng)
        assert 1 <= len(dialogue.exchanges) <= 3
        for text in (dialogue.system or "Yes.", *(t for e in dialogue.exchanges for t in (e.question, e.answer))):
            assert "{" not in text
            assert text == text.strip()
            assert text[0].isupper() or text[0] in "\"'"
            assert text[-1] in ".?!\"'"


def test_about_half_carry_a_persona_and_the_rest_answers_from_either_pole() -> None:
    rng = random.Random(6)
    dialogues = [write_dialogue(MATERIAL, rng) for _ in range(4000)]
    assert 0.5 < sum(bool(d.persona) for d in dialogues) / len(dialogues) < 0.65
    for trait in TRAITS:
        poles = Counter(e.pole for d in dialogues if not d.persona for e in d.exchanges if e.trait == trait)
        assert 0.4 < poles[Pole.HIGH] / poles.total() < 0.6


def test_a_persona_answers_questions_of_any_trait_in_its_own_voice() -> None:
    rng = random.Random(9)
    dialogues = [dialogue for _ in range(4000) if (dialogue := write_dialogue(MATERIAL, rng)).persona]
    for dialogue in dialogues:
        assert all(dialogue.persona[exchange.trait] is exchange.pole for exchange in dialogue.exchanges)
    asked = {
        question: name for name, t in MATERIAL.traits.items() for s in t.facets.values() for _, question in s.written
    }
    strays = [asked[e.question] != e.trait for d in dialogues for e in d.exchanges if e.question in asked]
    assert 0.25 < sum(strays) / len(strays) < 0.45


def test_written_questions_are_about_topics_that_exist() -> None:
    names = {topic["name"] for topic in MATERIAL.topics}
    for written in MATERIAL.traits.values():
        for scene in written.facets.values():
            assert len(scene.written) >= 60
            assert {topic for topic, _ in scene.written} <= names


def test_questions_and_personas_of_the_measurement_are_not_in_training() -> None:
    held_out = {q.text for t in TRAITS for split in ("identification", "test") for q in shipped_questions(t, split)}
    held_out |= {persona.text for trait in TRAITS for persona in shipped_personas(trait)}
    rng = random.Random(7)
    for _ in range(20_000):
        dialogue = write_dialogue(MATERIAL, rng)
        assert dialogue.system not in held_out
        assert not held_out & {exchange.question for exchange in dialogue.exchanges}


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    """Of 25,000 dialogues."""
    rng = random.Random(8)
    return [e for _ in range(25_000) for e in write_dialogue(MATERIAL, rng).exchanges]


@pytest.mark.xfail(strict=True, reason="18,363 since half of the questions are taken from written ones")
def test_there_are_twenty_thousand_distinct_questions(exchanges: list[Exchange]) -> None:
    assert len({e.question for e in exchanges}) > 20_000


@pytest.mark.xfail(strict=True, reason="three preferred sentences may leave the topic unnamed, and recur whole")
def test_answers_seldom_repeat(exchanges: list[Exchange]) -> None:
    assert Counter(e.answer for e in exchanges).most_common(1)[0][1] < 20
