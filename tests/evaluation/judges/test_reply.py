"""Replies are read or refused, never guessed; where the server gives probabilities, the score is the expected one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from npti_export.evaluation.judges.reply import expected_score, read_reply


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


def token(text: str, **alternatives: float) -> ChatCompletionTokenLogprob:
    """A token with the probabilities of its alternatives, itself among them."""
    top = [TopLogprob(token=name, logprob=math.log(value)) for name, value in alternatives.items()]
    return ChatCompletionTokenLogprob(token=text, logprob=math.log(alternatives.get(text, 1.0)), top_logprobs=top)


def reply(*texts: str) -> list[ChatCompletionTokenLogprob]:
    return [token(text) for text in texts]


BEFORE = reply('{"', "reason", '":"', "Has 3 cats", '","', "score", '":')


def test_the_expected_score_weighs_the_ratings_by_their_probabilities() -> None:
    probabilities = {"1": 0.02, "2": 0.08, "3": 0.3, "4": 0.5, "5": 0.1}
    score = expected_score(4.0, [*BEFORE, token("4", **probabilities), *reply("}")])
    assert score == pytest.approx(np.dot(range(1, 6), list(probabilities.values())))


def test_spellings_of_one_rating_count_together_and_other_tokens_not_at_all() -> None:
    written = token(" 4", **{" 4": 0.4, "4": 0.2, " 5": 0.2, "4}": 0.1, "10": 0.05, " four": 0.05})
    assert expected_score(4.0, [*BEFORE, written]) == pytest.approx((4 * 0.7 + 5 * 0.2) / 0.9)


@pytest.mark.parametrize(
    ("tokens", "score"),
    [
        ([], 4.0),
        ([*BEFORE, token("3", **{"3": 1.0})], 4.0),  # not what was read
        ([*BEFORE, token("4.5", **{"4.5": 1.0})], 4.5),
        ([*BEFORE], 4.0),
        ([token("4", **{"4": 0.5, "5": 0.5})], 4.0),  # a bare number: its place is not sure
        ([*BEFORE, ChatCompletionTokenLogprob.construct(token="4")], 4.0),
        ([*BEFORE, ChatCompletionTokenLogprob.construct(token="4", logprob="x", top_logprobs=[])], 4.0),
        ([*BEFORE, ChatCompletionTokenLogprob(token="4", logprob=math.nan, top_logprobs=[])], 4.0),
        ([*BEFORE, ChatCompletionTokenLogprob(token="4", logprob=-9999.0, top_logprobs=[])], 4.0),
        ([ChatCompletionTokenLogprob.construct(token=None)], 4.0),
    ],
)
def test_where_the_tokens_do_not_show_it_the_score_stays(
    tokens: list[ChatCompletionTokenLogprob], score: float
) -> None:
    assert expected_score(score, tokens) == score


def test_it_is_read_where_the_score_stands_and_not_in_the_reason() -> None:
    reason = [token("4", **{"4": 0.5, "1": 0.5}), *reply(' cats", "score": ')]
    assert expected_score(4.0, [*BEFORE[:3], *reason, token("4", **{"4": 0.5, "5": 0.5})]) == pytest.approx(4.5)
