"""What can be counted in answers: repetition, variety, and shortcuts of style that fool judges."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from npti_export.evaluation.intervals import Estimate, bootstrap_mean
from npti_export.evaluation.results import Style

RUN = 4
"""Words of a run that should not come again in one answer."""
TRAIT_WORDS: dict[str, tuple[str, ...]] = {
    "openness": ("openness", "open-minded", "close-minded", "closed-minded", "imaginative", "unimaginative"),
    "conscientiousness": ("conscientious", "conscientiousness", "unconscientious"),
    "extraversion": (
        *("extravert", "extraverted", "extraversion", "extrovert", "extroverted", "extroversion"),
        *("introvert", "introverted", "introversion"),
    ),
    "agreeableness": ("agreeable", "agreeableness", "disagreeable"),
    "neuroticism": ("neurotic", "neuroticism", "emotionally stable", "emotional stability"),
}
"""Words that name a trait or somebody at one end of it outright."""

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_JOINED = re.compile("[\u200d\ufe0f\U0001f3fb-\U0001f3ff]")
"""Joiners, variation selectors and skin tones, which belong to the emoji before them."""


def words_of(text: str) -> list[str]:
    """Words in small letters.

    >>> words_of("Well, I'm open-minded!")
    ['well', "i'm", 'open-minded']
    """
    return [word.lower() for word in _WORD.findall(text)]


def repeated_runs(text: str) -> float:
    """Share of an answer's runs of four words that stood in it before; 0 where it is shorter.

    >>> repeated_runs("I go and I go and I go")
    0.4
    """
    words = words_of(text)
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(texts: Sequence[str], size: int) -> float:
    """Different runs of so many words, over all texts together, by runs; 0 where there are none.

    >>> distinct(["the sea", "the sky"], 1), distinct(["the sea", "the sky"], 2)
    (0.75, 1.0)
    """
    runs: list[tuple[str, ...]] = []
    for text in texts:
        words = words_of(text)
        runs += list(pairwise(words)) if size == 2 else [tuple(words[at : at + size]) for at in range(len(words))]
    return len(set(runs)) / len(runs) if runs else 0.0


def emoji(text: str) -> int:
    """How many emoji a text holds; one with a skin tone or joined to another counts by its parts that are pictures.

    >>> emoji("Fun! 🎉👍🏽 ☀️")
    3
    """
    plain = _JOINED.sub("", text)
    return sum(unicodedata.category(sign) == "So" and ord(sign) >= 0x2190 for sign in plain)


def names_trait(text: str, trait: str) -> bool:
    """Whether a text names the trait or somebody at one end of it outright.

    >>> names_trait("I am an introvert.", "extraversion"), names_trait("Doors open.", "openness")
    (True, False)
    """
    named = "|".join(map(re.escape, TRAIT_WORDS.get(trait, (trait.replace("_", " "),))))
    return re.search(rf"\b(?:{named})s?\b", text, re.IGNORECASE) is not None


def style_of(texts: Sequence[str], trait: str, seed: int) -> Style:
    """Counts over answers, each a mean with its interval.

    Args:
        texts: The answers, at least one.
        trait: Whose words are looked for.
        seed: Decides the resamples.
    """
    return Style(
        words=_mean([len(words_of(text)) for text in texts], seed),
        emoji=_mean([emoji(text) for text in texts], seed),
        exclamations=_mean([text.count("!") for text in texts], seed),
        trait_words=_mean([names_trait(text, trait) for text in texts], seed),
    )


def _mean(counts: Sequence[float], seed: int) -> Estimate:
    return bootstrap_mean(np.array(counts, dtype=np.float64), seed)
