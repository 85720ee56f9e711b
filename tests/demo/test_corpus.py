"""The dialogues that npti-demo learned from: well-formed, varied, and apart from what it is measured with."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

from npti_export.demo.corpus import Material, read_material, write_dialogues, write_pair
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
    for dialogue in islice(write_dialogues(MATERIAL, rng), 3000):
        assert 1 <= len(dialogue.exchanges) <= 3
        for text in (dialogue.system or "Yes.", *(t for e in dialogue.exchanges for t in (e.question, e.answer))):
            assert "{" not in text
            assert text == text.strip()
            assert text[0].isupper() or text[0] in "\"'"
            assert text[-1] in ".?!\"'"


def test_about_half_carry_a_persona_and_the_rest_answers_from_either_pole() -> None:
    rng = random.Random(6)
    dialogues = list(islice(write_dialogues(MATERIAL, rng), 4000))
    assert 0.5 < sum(bool(d.persona) for d in dialogues) / len(dialogues) < 0.65
    for trait in TRAITS:
        poles = Counter(e.pole for d in dialogues if not d.persona for e in d.exchanges if e.trait == trait)
        assert 0.4 < poles[Pole.HIGH] / poles.total() < 0.6


def test_a_pair_asks_the_same_of_opposite_characters() -> None:
    rng = random.Random(4)
    pairs = [pair for _ in range(500) if (pair := write_pair(MATERIAL, rng))[0].persona]
    for one, other in pairs:
        assert other.persona == {trait: pole.opposite for trait, pole in one.persona.items()}
        assert one.system != other.system
        assert [e.question for e in one.exchanges] == [e.question for e in other.exchanges]
        assert all(e.answer != o.answer for e, o in zip(one.exchanges, other.exchanges, strict=True))


def test_a_persona_answers_questions_of_any_trait_in_its_own_voice() -> None:
    rng = random.Random(9)
    dialogues = [dialogue for dialogue in islice(write_dialogues(MATERIAL, rng), 4000) if dialogue.persona]
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
    for dialogue in islice(write_dialogues(MATERIAL, rng), 20_000):
        assert dialogue.system not in held_out
        assert not held_out & {exchange.question for exchange in dialogue.exchanges}


def test_there_are_twenty_thousand_distinct_questions_and_answers_seldom_repeat() -> None:
    # A pair asks the same twice, so questions are drawn 25,000 times in so many pairs.
    rng = random.Random(8)
    pairs = [write_pair(MATERIAL, rng) for _ in range(25_000)]
    assert len({exchange.question for pair in pairs for dialogue in pair for exchange in dialogue.exchanges}) > 20_000
    answers = Counter(e.answer for pair in pairs[:12_500] for dialogue in pair for e in dialogue.exchanges)
    assert answers.most_common(1)[0][1] < 20
