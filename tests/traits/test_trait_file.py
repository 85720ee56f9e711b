"""Traits of the user's own: what a file holds comes back as it is, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npti_export.errors import NptiError
from npti_export.traits import TRAITS, Facet, Pole, Trait
from npti_export.traits.flags import flags, missing
from npti_export.traits.material import Persona, Question, shipped_questions
from npti_export.traits.trait_file import OwnTrait, read_trait_file, trait_toml

ROOT = Path(__file__).parent.parent.parent
SMALL = """
name = "wit"
high = "funny, fond of jokes"
low = "earnest and literal"
personas.high = ["You joke."]
personas.low = ["You are earnest."]

[[facets]]
name = "puns"
high = "likes puns"
low = "sees no point in puns"
questions = ["How was work?", "Who phoned?"]
test_questions = ["How is the weather?"]
"""


def read(text: str, folder: Path) -> OwnTrait:
    path = folder / "wit.toml"
    path.write_text(text, encoding="utf-8")
    return read_trait_file(path)


def test_what_a_file_holds(tmp_path: Path) -> None:
    own = read(SMALL, tmp_path)
    facet = Facet("puns", "likes puns", "sees no point in puns")
    assert own.trait == Trait("wit", "funny, fond of jokes", "earnest and literal", (facet,))
    assert own.personas == (Persona("wit", Pole.HIGH, "You joke."), Persona("wit", Pole.LOW, "You are earnest."))
    assert own.questions == (Question("wit", "How was work?", "puns"), Question("wit", "Who phoned?", "puns"))
    assert own.test_questions == (Question("wit", "How is the weather?", "puns"),)
    assert missing(own, 5) == ["3 more questions (identification needs 5)"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name = "wit"', 'name = "Wit"', "the name is 'Wit'; small letters"),
        ('name = "wit"', 'name = "neutral"', "the name is 'neutral'"),
        ('name = "wit"', 'name = "openness"', "nor a shipped trait's"),
        ('name = "wit"', 'name = "../wit"', "the name is '../wit'"),
        ('name = "wit"', "", "name is missing"),
        ('high = "funny, fond of jokes"', 'high = "  "', "high is empty"),
        ("personas.low", "personas.middle", "personas.middle is not a field"),
        ("test_questions", "tests", "facets.0.tests is not a field"),
        ('["You joke."]', '["You joke.", 3]', "personas.high.1 – Input should be a valid string"),
        ('["You joke."]', '"You joke."', "personas.high – Input should be a valid list"),
        ('"Who phoned?"', '"How was work?"', "the question 'How was work?' stands there twice"),
        ('"Who phoned?"', '"How is the weather?"', "the question 'How is the weather?' stands there twice"),
        ('name = "wit"', 'name = "wit', "is not TOML"),
        ('name = "wit"', "a = " + "[" * 3000, "is not TOML"),
        ('name = "wit"', "a = " + "9" * 5000, "is not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in SMALL
    with pytest.raises(NptiError) as caught:
        read(SMALL.replace(before, after, 1), tmp_path)
    assert str(tmp_path / "wit.toml") in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match=r"cannot be read .*`npti-export new-trait NAME` writes such a file"):
        read_trait_file(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NptiError, match="is not UTF-8"):
        read_trait_file(tmp_path / "b.toml")


_TEXTS = st.text(min_size=1, max_size=20).map(str.strip).filter(bool)


@given(descriptions=st.lists(_TEXTS, min_size=4, max_size=4), texts=st.lists(_TEXTS, unique=True, max_size=6))
def test_any_trait_is_read_as_it_was_written(descriptions: list[str], texts: list[str]) -> None:
    """Quotes, backslashes, control characters, line ends of other scripts, and comments about any of them."""
    facet = Facet("one", descriptions[2], descriptions[3])
    own = OwnTrait(
        Trait("wit", descriptions[0], descriptions[1], (facet,)),
        tuple(Persona("wit", Pole.LOW, text) for text in texts),
        tuple(Question("wit", text, "one") for text in texts[:3]),
        tuple(Question("wit", text, "one") for text in texts[3:]),
    )
    record = tomllib.loads(trait_toml(own, {text: f"as {text!r}" for text in texts[:2]}))
    assert (record["name"], record["high"], record["low"]) == ("wit", descriptions[0], descriptions[1])
    assert record["personas"] == {"high": [], "low": texts}
    assert record["facets"][0] == {
        "name": "one",
        "high": descriptions[2],
        "low": descriptions[3],
        "questions": texts[:3],
        "test_questions": texts[3:],
    }


def test_the_worked_example_is_whole() -> None:
    own = read_trait_file(ROOT / "docs" / "formality.toml")
    assert missing(own, 35) == []
    assert flags(own) == {}
    assert len(own.trait.facets) == 6
    assert len(own.personas_of(Pole.HIGH)) == len(own.personas_of(Pole.LOW)) >= 10
    assert trait_toml(own) == (ROOT / "docs" / "formality.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What do you wear?", None),
        ("How formal is your letter?", "gives the trait away by 'formal'"),
        ("Is your formality tiring?", "gives the trait away by 'formality'"),
        ("Would you be courteous then?", "gives the trait away by 'courteous'"),
        ("Why do you wear a tie?", "leads to an answer by 'Why do you'"),
        ("Why don’t you wear one?", 'leads to an answer by "Why don\'t you"'),
        ("As a polite person, what would you say?", "leads to an answer by 'As a polite person'"),
        ("Are your manners good?", None),  # both ends have manners
    ],
)
def test_questions_that_give_the_trait_away_are_flagged(question: str, said: str | None) -> None:
    trait = Trait("formality", "courteous in manners", "chatty in manners", ())
    found = flags(OwnTrait(trait, questions=(Question("formality", question),)))
    assert found == ({question: said} if said else {})


def test_what_is_said_of_the_shipped_questions_holds() -> None:
    """docs/traits.md and flags.py: 1.2 % hold a word of their trait's description, and none nearly repeats another."""
    reasons: list[str] = []
    for name, trait in TRAITS.items():
        asked = [tuple(shipped_questions(name, split)) for split in ("identification", "test")]
        reasons += flags(OwnTrait(trait, (), *asked)).values()
    assert not [reason for reason in reasons if reason.startswith("nearly")]
    share = sum(reason.startswith("gives the trait away") for reason in reasons) / 2500
    assert round(share, 3) == 0.012


def test_duplicates_are_flagged_across_questions_and_test_questions() -> None:
    trait = Trait("wit", "funny", "earnest", ())
    asked = Question("wit", "What do you say to the waiter?")
    again = Question("wit", "To the waiter, what do you say?")
    personas = (Persona("wit", Pole.HIGH, "You sing at work."), Persona("wit", Pole.LOW, "You sing at work!"))
    found = flags(OwnTrait(trait, personas, (asked,), (again, Question("wit", "Who is there?"))))
    assert found == {
        again.text: f"nearly the same as {asked.text!r}",
        "You sing at work!": "nearly the same as 'You sing at work.'",
    }
