"""The traits, personas and questions that ship, and files of the user's and of PersonalityBench."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest

from npti_export.errors import NptiError
from npti_export.traits import TRAIT_NAME, TRAITS, Pole, trait_named
from npti_export.traits.material import (
    Persona,
    Question,
    material_sha256,
    read_personas,
    read_questions,
    shipped_personas,
    shipped_questions,
)

FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
STEMS = {
    "openness": r"\bopen(ness|-minded)",
    "conscientiousness": r"conscientious",
    "extraversion": r"(extra|intro)ver[st]",
    "agreeableness": r"agreeabl",
    "neuroticism": r"neuroti",
}


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def test_five_traits_of_six_facets_in_the_order_of_the_paper():
    assert tuple(TRAITS) == FIVE
    for name, trait in TRAITS.items():
        assert trait.name == name
        assert TRAIT_NAME.fullmatch(name)
        assert len({facet.name for facet in trait.facets}) == len(trait.facets) == 6
        assert trait.describe(Pole.HIGH) == trait.high != trait.low == trait.describe(Pole.LOW)
        assert all(facet.high.strip() and facet.low.strip() and facet.high != facet.low for facet in trait.facets)


@pytest.mark.parametrize("trait", FIVE)
def test_personas(trait):
    personas = shipped_personas(trait)
    assert {persona.trait for persona in personas} == {trait}
    count = Counter(persona.pole for persona in personas)
    assert min(count[pole] for pole in Pole) >= 40
    assert count[Pole.HIGH] == count[Pole.LOW]
    assert len({normalised(persona.text) for persona in personas}) == len(personas)
    assert all("you" in normalised(persona.text).split() for persona in personas), "second person"


@pytest.mark.parametrize("trait", FIVE)
def test_questions(trait):
    facets = {facet.name for facet in TRAITS[trait].facets}
    identification, test = shipped_questions(trait, "identification"), shipped_questions(trait, "test")
    assert len(identification) >= 400
    assert len(test) >= 90
    for questions in (identification, test):
        assert {question.trait for question in questions} == {trait}
        per_facet = Counter(question.facet for question in questions)
        assert set(per_facet) == facets
        assert min(per_facet.values()) >= 0.7 * len(questions) / 6
    for question in identification + test:
        assert question.text.endswith(("?", ".")), question.text
        assert not re.search(STEMS[trait], question.text, re.IGNORECASE), question.text


def test_no_question_stands_anywhere_twice():
    everywhere = Counter(
        normalised(question.text)
        for trait in FIVE
        for split in ("identification", "test")
        for question in shipped_questions(trait, split)
    )
    assert [text for text, times in everywhere.items() if times > 1] == []


@pytest.mark.parametrize("ask", [lambda: shipped_personas("wit"), lambda: shipped_questions("../x", "test")])
def test_a_trait_that_does_not_ship_is_refused_with_those_that_do(ask):
    with pytest.raises(NptiError, match="the shipped traits are openness, conscientiousness"):
        ask()


def test_trait_named():
    assert trait_named("openness") is TRAITS["openness"]
    with pytest.raises(NptiError, match="There is no trait 'Openness'"):
        trait_named("Openness")


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "material.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_questions_of_personality_bench(file):
    path = file('{"question": "What do you do on a free day?"}\n\n{"question": " Who calls first? "}\n')
    assert read_questions(path, "openness") == [
        Question("openness", "What do you do on a free day?"),
        Question("openness", "Who calls first?"),
    ]


def test_questions_of_other_traits_are_left_out(file):
    path = file(
        '{"trait": "Wit", "facet": "puns", "question": "A?"}\n{"trait": "openness", "question": "B?"}\n'
        '{"trait": "wit", "facet": null, "question": "C?"}\n{"trait": null, "question": "D?"}'
    )
    assert read_questions(path, "wit") == [Question("wit", "A?", "puns"), Question("wit", "C?"), Question("wit", "D?")]


def test_marks_of_windows_and_separators_inside_a_question(file):
    path = file(b'\xef\xbb\xbf{"question": "A?"}\r\n' + '{"question": "One\u2028two\x85three?"}\r\n'.encode())
    assert [question.text for question in read_questions(path, "openness")] == ["A?", "One\u2028two\x85three?"]


def test_personas_of_personality_bench(file):
    path = file(
        '{"Openness": "You dream.", "Openness_reversed": "You do not.", "Neuroticism": "You fret."}\n'
        '{"Openness": " You roam. ", "Openness_reversed": "You stay.", "Neuroticism_reversed": "You rest."}\n'
    )
    assert read_personas(path, "openness") == [
        Persona("openness", Pole.HIGH, "You dream."),
        Persona("openness", Pole.LOW, "You do not."),
        Persona("openness", Pole.HIGH, "You roam."),
        Persona("openness", Pole.LOW, "You stay."),
    ]
    assert [persona.text for persona in read_personas(path, "neuroticism")] == ["You fret.", "You rest."]


@pytest.mark.parametrize("trait", ["wit", "risk_taking", "a2", "pole", "high", "x_reversed"])
def test_personas_of_a_trait_that_the_user_defines(file, trait):
    expected = [Persona(trait, Pole.HIGH, "You do."), Persona(trait, Pole.LOW, "You do not.")]
    assert read_personas(file(json.dumps({trait: "You do.", f"{trait}_reversed": "You do not."})), trait) == expected
    lines = [json.dumps({"trait": trait, "pole": persona.pole, "text": persona.text}) for persona in expected]
    other = json.dumps({"trait": "other", "pole": "high", "text": "You are somebody else."})
    assert read_personas(file("\n".join([lines[0], other, lines[1]])), trait) == expected


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_questions, '{"question": "A?"}\n{"question": ', r"material.jsonl, line 2: not JSON"),
        (read_questions, '{"question": "A?"}\n\n["B?"]', r"line 3: list found, a JSON object expected"),
        (read_questions, '{"question": "A?"}\n{"q": "B?"}', r"line 2: no text under the key 'question'"),
        (read_questions, '{"question": "  "}', r"line 1: no text under the key 'question'"),
        (read_questions, '{"question": 3}', r"line 1: no text"),
        (read_questions, "[" * 100_000, r"line 1: not JSON"),
        (read_questions, r'{"question": "\ud83d?"}', r"line 1: not JSON .*surrogates not allowed"),
        (read_questions, "", r"holds no questions for wit"),
        (read_questions, "\n \n", r"holds no questions for wit"),
        (read_questions, '{"trait": "openness", "question": "A?"}', r"holds no questions for wit"),
        (read_questions, '{"question": "é?"}'.encode("latin-1"), r"material.jsonl is not UTF-8 text"),
        (read_personas, '{"wit": "You joke."}\nx', r"line 2: not JSON"),
        (read_personas, '{"wit": "You joke."}', r"holds no low persona for wit"),
        (read_personas, '{"wit": " ", "wit_reversed": "You do not."}', r"holds no high persona for wit"),
        (read_personas, "", r"holds no high persona for wit"),
        (read_personas, '{"text": "You joke.", "trait": "wit"}', r"line 1: a persona needs 'trait', 'pole'"),
        (read_personas, '{"text": "You joke.", "trait": "wit", "pole": "up"}', r"line 1: a persona needs"),
        (read_personas, '{"text": "", "trait": "wit", "pole": "low"}', r"line 1: a persona needs"),
        (read_personas, "é".encode("utf-16"), r"is not UTF-8 text"),
    ],
)
def test_broken_files_are_refused_where_they_break(file, read, content, message):
    with pytest.raises(NptiError, match=message):
        read(file(content), "wit")


@pytest.mark.parametrize("read", [read_questions, read_personas])
def test_a_file_that_cannot_be_read(tmp_path, read):
    with pytest.raises(NptiError, match=r"gone.jsonl cannot be read \(No such file or directory\)"):
        read(tmp_path / "gone.jsonl", "wit")
    with pytest.raises(NptiError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path, "wit")


def test_the_hash_is_that_of_the_texts_in_their_order():
    assert material_sha256(iter(["a", "é"])) == hashlib.sha256(b"a\n\xc3\xa9").hexdigest()
    assert material_sha256(["b", "a"]) != material_sha256(["a", "b"])
