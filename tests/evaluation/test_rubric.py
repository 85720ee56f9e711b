"""The rubric is blind, and replies are read or refused, never guessed."""

from __future__ import annotations

import pytest

from npti_export.evaluation.rubric import read_reply, rubric
from npti_export.traits import TRAITS, Facet, Trait, trait_named


@pytest.mark.parametrize("name", TRAITS)
def test_the_rubric_is_blind(name: str) -> None:
    text = rubric(trait_named(name)).lower()
    assert name in text
    for word in ("npti", "neuron", "steer", "adapter", "persona ", "prompt", "baseline", "gamma", "pole", "model"):
        assert word not in text


def test_the_rubric_of_a_trait_of_ones_own() -> None:
    text = rubric(Trait("dry_wit", "droll", "earnest", (Facet("dead_pan", "keeps a straight face", "grins"),)))
    assert "trait: dry wit." in text
    assert "- dead pan; high: keeps a straight face; low: grins\n" in text


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ('{"reason": "Bold.", "score": 5}', 5.0, "Bold."),
        ('Sure!\n```json\n{"reason": "a {b} c", "score": 2}\n```', 2.0, "a {b} c"),
        ('<think>{"reason": "draft", "score": 1}</think> {"reason": "final", "score": 4}', 4.0, "final"),
        ('{"result": {"reason": "inner", "score": 3}}', 3.0, "inner"),
        ('{"reason": "two\nlines", "score": "3.5"}', 3.5, "two\nlines"),
        ('{"score": 1.0}', 1.0, ""),
        ("4", 4.0, ""),
        (" **Score: 2/5** ", 2.0, ""),
        ("Keeps 3 cats.\nRating: 5 out of 5.", 5.0, "Keeps 3 cats."),
    ],
)
def test_replies_that_are_read(text: str, score: float, reason: str) -> None:
    assert read_reply(text) == (score, reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no score"),
        ("I cannot rate 3 of the facets.", "no score"),
        ("4 or 5", "no score"),
        ("4/10", "no score"),
        ('{"reason": "high"}', "no score"),
        ('{"reason": "It has\n3', "no score"),
        ('{"reason": "", "score": true}', "no score"),
        ('{"reason": "", "score": null}', "no score"),
        ('{"reason": "", "score": "high"}', "no score"),
        ('{"reason": "", "score": 6}', "off the scale"),
        ('{"reason": "", "score": 0.99}', "off the scale"),
        ('{"reason": "", "score": NaN}', "off the scale"),
        ("-3", "off the scale"),
        ("10", "off the scale"),
        ('{"a":' * 5000, "no score"),
    ],
)
def test_replies_that_are_no_rating(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_reply(text)
