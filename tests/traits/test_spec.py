"""Personality specs: what is read, what is printed, what is refused and how."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npti_export.errors import NptiError
from npti_export.traits import NEUTRAL, TRAITS, PersonalitySpec, Pole, Term, in_canonical_order

STEADY = settings(deadline=None, derandomize=True, max_examples=60)

ANY_NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "neutral")
NAMES = st.sampled_from([*TRAITS, "wit", "risk_taking"]) | ANY_NAME
STRENGTHS = st.floats(0, allow_nan=False, allow_infinity=False)
TERMS = st.builds(Term, NAMES, st.sampled_from(Pole), STRENGTHS)
SPECS = st.lists(TERMS, unique_by=lambda term: term.trait, max_size=6)


@STEADY
@given(SPECS)
def test_any_spec_prints_and_parses_back(terms):
    spec = PersonalitySpec.parse(",".join(map(str, terms)) or "neutral")
    assert sorted(spec.terms, key=str) == sorted(terms, key=str)
    assert PersonalitySpec.parse(str(spec)) == spec
    assert PersonalitySpec.parse(spec) == spec
    assert [term.trait for term in spec.terms] == in_canonical_order(term.trait for term in terms)


@STEADY
@given(SPECS, st.integers(0, 2**32))
def test_order_case_and_blanks_do_not_matter(terms, seed):
    random = Random(seed)
    text = ",".join(map(str, terms)) or "neutral"
    pieces = text.split(",")
    random.shuffle(pieces)
    noisy = ",".join(pieces)
    noisy = "".join(random.choice([c.upper(), c.lower()]) + random.choice(["", " ", "\t", "\n"]) for c in noisy)
    assert PersonalitySpec.parse(noisy) == PersonalitySpec.parse(text)


@STEADY
@given(st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False)))
def test_a_mapping_is_a_spec(mapping):
    terms = {term.trait: term for term in PersonalitySpec.parse(mapping).terms}
    assert terms.keys() == mapping.keys()
    for trait, strength in mapping.items():
        assert terms[trait].strength == abs(strength)
        assert terms[trait].pole is (Pole.LOW if strength < 0 else Pole.HIGH)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("openness+", [("openness", Pole.HIGH, 1.0)]),
        ("openness-", [("openness", Pole.LOW, 1.0)]),
        ("openness+0.5", [("openness", Pole.HIGH, 0.5)]),
        ("openness+.5", [("openness", Pole.HIGH, 0.5)]),
        ("openness+2.", [("openness", Pole.HIGH, 2.0)]),
        ("openness+007", [("openness", Pole.HIGH, 7.0)]),
        ("openness-0", [("openness", Pole.LOW, 0.0)]),
        ("neuroticism-1.2, Extraversion +", [("extraversion", Pole.HIGH, 1.0), ("neuroticism", Pole.LOW, 1.2)]),
        ("wit+,neuroticism+,bite+", [("neuroticism", Pole.HIGH, 1), ("bite", Pole.HIGH, 1), ("wit", Pole.HIGH, 1)]),
        ("risk_taking+", [("risk_taking", Pole.HIGH, 1.0)]),
    ],
)
def test_what_is_read(text, terms):
    assert PersonalitySpec.parse(text).terms == tuple(Term(*term) for term in terms)


@pytest.mark.parametrize("nothing", [None, "neutral", " Neutral ", {}, NEUTRAL, PersonalitySpec()])
def test_neutral(nothing):
    spec = PersonalitySpec.parse(nothing, known=[])
    assert spec == NEUTRAL
    assert spec.is_neutral
    assert str(spec) == "neutral"


def test_strength_zero_is_neutral_but_another_term_is_not():
    assert PersonalitySpec.parse("openness+0,wit-0.0").is_neutral
    assert not PersonalitySpec.parse("openness+0,wit-0.01").is_neutral


def test_numbers_of_other_kinds():
    numbers = {"a": np.float32(0.5), "b": -2, "c": Fraction(1, 4), "d": np.int64(3)}
    assert str(PersonalitySpec.parse(numbers)) == "a+0.5,b-2,c+0.25,d+3"


KNOWN = ("openness", "wit")


@pytest.mark.parametrize(
    ("spec", "term", "reason"),
    [
        ("openess+", "'openess+'", "there is no trait 'openess'"),
        ("openness+,wit", "'wit'", "a term is a trait, + or -"),
        ("", "''", "a term is a trait, + or -"),
        ("openness+,", "''", "a term is a trait, + or -"),
        ("openness+1e3", "'openness+1e3'", "a term is"),
        ("openness+1,5", "'5'", "a term is"),
        ("openness+-1", "'openness+-1'", "a term is"),
        ("openness+٣", "'openness+٣'", "a term is"),
        ("openness+nan", "'openness+nan'", "a term is"),
        ("öffnung+", "'öffnung+'", "a term is"),
        ("_wit+", "'_wit+'", "a term is"),
        ("openness+" + "9" * 400, "'openness+999", "the strength is too large"),
        ("wit+, openness+, wit-", "'wit-'", "wit stands there twice"),
        ("neutral,wit+", "'neutral'", "neutral stands alone"),
        ("neutral+", "'neutral+'", "neutral stands alone"),
        ({"neutral": 1.0}, "'neutral+1'", "neutral stands alone"),
        ({"wit": 1.0, "openess": 2}, "'openess+2'", "there is no trait"),
        ({"wit": 1.0, "WIT ": 2}, "'wit+2'", "stands there twice"),
        (PersonalitySpec((Term("gall", Pole.LOW),)), "'gall-'", "there is no trait 'gall'"),
        (PersonalitySpec((Term("wit", Pole.LOW, -1.0),)), "'wit--1'", "a term is"),
    ],
)
def test_errors_show_the_spec_point_at_the_term_and_list_what_is_there(spec, term, reason):
    with pytest.raises(ValueError, match="there is") as caught:
        PersonalitySpec.parse(spec, known=iter(KNOWN))
    message = str(caught.value)
    assert isinstance(caught.value, NptiError)
    assert (repr(str(spec)) if not isinstance(spec, dict) else repr(spec)) in message
    assert f"term {term}" in message
    assert reason in message
    assert message.endswith("(there is openness, wit).")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("mapping", "found"),
    [
        ({"wit": "1"}, "the strength of wit is '1'"),
        ({"wit": True}, "the strength of wit is True"),
        ({"wit": math.nan}, "the strength of wit is nan"),
        ({"wit": -math.inf}, "the strength of wit is -inf"),
        ({"wit": 10**400}, "the strength of wit is 1000"),
        ({"wit": None}, "the strength of wit is None"),
        ({"wit+": 1.0}, "'wit+' is no name of a trait"),
        ({"wit+1,openness": 1.0}, "is no name of a trait"),
        ({3: 1.0}, "3 is no name of a trait"),
    ],
)
def test_bad_mappings(mapping, found):
    with pytest.raises(NptiError) as caught:
        PersonalitySpec.parse(mapping)
    assert found in str(caught.value)
    assert repr(mapping) in str(caught.value)


@pytest.mark.parametrize("wrong", [3, 0.5, ["openness+"], b"openness+"])
def test_other_types_are_refused(wrong):
    with pytest.raises(NptiError, match=f"not {type(wrong).__name__}"):
        PersonalitySpec.parse(wrong)


def test_without_any_known_trait_the_message_says_so():
    with pytest.raises(NptiError, match="there is no trait 'wit' \\(there is no trait\\)"):
        PersonalitySpec.parse("wit+", known=[])


@STEADY
@given(st.text())
def test_any_text_is_read_or_refused_with_one_error(text):
    try:
        spec = PersonalitySpec.parse(text)
    except NptiError as error:
        message = str(error)
    else:
        message = repr(text)
        assert PersonalitySpec.parse(str(spec)) == spec
    assert repr(text) in message


def test_poles():
    assert [(pole.opposite.value, pole.sign) for pole in Pole] == [("low", "+"), ("high", "-")]
