"""How the reply of a judge that writes is read: the form asked for, its score and reason, and its expected score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.shared_params import ResponseFormatJSONSchema

from npti_export.evaluation.judges.rubric import HIGHEST, LOWEST

RESPONSE_FORMAT: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {
        "name": "rating",
        "strict": True,
        # A strict schema is written in this order, so the reason is there before the score is chosen.
        "schema": {
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
            },
            "required": ["reason", "score"],
            "additionalProperties": False,
        },
    },
}

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
# A line that is a rating and nothing else: "4", "Score: 4", "**4/5**".
_RATING_LINE = re.compile(
    rf"[\s*_`]*(?:(?:score|rating)[\s*_`]*[:=]?[\s*_`]*)?({_NUMBER})(?:\s*(?:/|out of)\s*5)?[\s*_`.]*", re.IGNORECASE
)
_BEFORE_SCORE = re.compile(r'"score"\s*:\s*"?')
# What tokenizers put into one token with the digit.
_AROUND_DIGIT = ' \t\n":,}▁Ġ'


def read_reply(text: str) -> tuple[float, str]:
    """Reads the score and the reason out of what a judge wrote.

    Args:
        text: JSON with ``score`` and ``reason``, alone or anywhere in the text (the last such object counts); or a
            text whose last line is a number and nothing else.

    Returns:
        The score, 1 to 5, and the reason.

    Raises:
        ValueError: If there is no score or it is off the scale; a score is never guessed.

    >>> read_reply('Well: {"reason": "Loves crowds.", "score": 5}')
    (5.0, 'Loves crowds.')
    """
    rating = _last_object_with_score(text)
    if rating is not None:
        score, reason = rating["score"], rating.get("reason")
        if isinstance(score, str) and re.fullmatch(_NUMBER, score.strip()):
            score = float(score)
        reason = reason if isinstance(reason, str) else ""
    elif "{" in text:  # JSON that broke off: a number in it need not be the score
        score, reason = None, ""
    else:
        *lines, last = text.strip().splitlines() or [""]
        match = _RATING_LINE.fullmatch(last)
        score, reason = float(match[1]) if match else None, "\n".join(lines).strip()
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"no score in the reply: {shorten(text)!r}")
    if not LOWEST <= score <= HIGHEST:
        raise ValueError(f"the score is off the scale of 1 to 5: {shorten(text)!r}")
    return float(score), reason


def expected_score(score: float, tokens: Sequence[ChatCompletionTokenLogprob]) -> float:
    """The mean of the ratings 1 to 5, each weighted by the probability that it had where the score was written.

    A judge that wavers between 3 and 4 says 3 or 4; its expected score says how far it leans. (Zheng et al. 2023 and
    Liu et al. 2023, G-Eval, score this way.)

    Args:
        score: What the judge wrote.
        tokens: Its reply, token by token, with their most likely alternatives.

    Returns:
        The expected score; the score itself where the tokens do not show it as one of the ratings.

    >>> from openai.types.chat.chat_completion_token_logprob import TopLogprob
    >>> likely = [TopLogprob(token=" 4", logprob=math.log(0.75)), TopLogprob(token="5", logprob=math.log(0.25))]
    >>> before = ChatCompletionTokenLogprob(token='{"score":', logprob=0.0, top_logprobs=[])
    >>> written = ChatCompletionTokenLogprob(token=" 4", logprob=math.log(0.75), top_logprobs=likely)
    >>> round(expected_score(4.0, [before, written]), 6)
    4.25
    """
    try:
        place = _place_of_score([token.token for token in tokens])
        if place is None or _rating(tokens[place].token) != score:
            return score
        # Several tokens may spell one rating. The token written is among the alternatives wherever a server gives any.
        alternatives = {top.token: top.logprob for top in tokens[place].top_logprobs}
        alternatives.setdefault(tokens[place].token, tokens[place].logprob)
        weights = dict.fromkeys(range(1, 6), 0.0)
        for token, logprob in alternatives.items():
            if (rating := _rating(token)) is not None:
                weights[rating] += math.exp(min(logprob, 0.0))
        expected = sum(rating * weight for rating, weight in weights.items()) / sum(weights.values())
    except (AttributeError, TypeError, ValueError, ArithmeticError):  # a server may send anything
        return score
    return expected if LOWEST <= expected <= HIGHEST else score


def shorten(text: str) -> str:
    """At most 200 characters of a text on one line, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:200] + "…"


def _place_of_score(tokens: list[str]) -> int | None:
    """Which token holds the digit behind the last ``"score":``."""
    matches = list(_BEFORE_SCORE.finditer("".join(tokens)))
    if not matches:
        return None
    digit, begin = matches[-1].end(), 0
    for place, token in enumerate(tokens):
        begin += len(token)
        if begin > digit:
            return place
    return None


def _rating(token: str) -> int | None:
    digit = token.strip(_AROUND_DIGIT)
    return int(digit) if digit in ("1", "2", "3", "4", "5") else None


def _last_object_with_score(text: str) -> dict[str, object] | None:
    found, start = None, text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, stop = json.JSONDecoder(strict=False).raw_decode(text, start)
            if "score" in value:
                found, end = value, stop
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)
    return found
