"""Power, rank correlation, tipping over, equal cost and counts against scipy, published tables and known data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from npti_export.evaluation.compare import Dosed, matched, paired_difference, rank_correlation, tips_over
from npti_export.evaluation.power import power_of, questions_needed
from npti_export.evaluation.style import distinct, emoji, names_trait, repeated_runs, style_of


@pytest.mark.parametrize(("effect_size", "questions"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_questions_needed_are_those_of_the_published_tables(effect_size: float, questions: int) -> None:
    """Small, medium and large effects by Cohen, paired t test, two-sided, 5 % level, 80 % power (as G*Power gives)."""
    assert questions_needed(effect_size, 1.0) == questions
    assert questions_needed(0.1 * effect_size, 0.1) == questions
    assert power_of(questions, effect_size, 1.0) >= 0.8 > power_of(questions - 1, effect_size, 1.0)


@pytest.mark.parametrize(("questions", "difference", "deviation"), [(20, 0.1, 0.2), (40, 0.1, 0.3), (60, 0.05, 0.2)])
def test_power_is_how_often_scipys_test_finds_the_difference(
    questions: int, difference: float, deviation: float
) -> None:
    drawn = np.random.default_rng(0).normal(difference, deviation, (20_000, questions))
    found = (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean()
    assert power_of(questions, difference, deviation) == pytest.approx(found, abs=0.012)


def test_the_note_on_power_says_what_is_computed() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8").splitlines()
    [heads] = [line for line in lines if line.startswith("| standard deviation of the differences")]
    [needed] = [line for line in lines if line.startswith("| questions |")]
    deviations, questions = (row.strip("|").split("|")[1:] for row in (heads, needed))
    assert [questions_needed(0.1, float(deviation)) for deviation in deviations] == list(map(int, questions))


def test_a_difference_that_never_varies_needs_two_questions() -> None:
    assert questions_needed(0.1, 0.0) == 2
    assert questions_needed(-0.5, 1.0) == questions_needed(0.5, 1.0)


def test_a_paired_difference_is_narrower_than_that_of_two_samples() -> None:
    rng = np.random.default_rng(1)
    questions = rng.normal(0.5, 0.3, 60)
    before, after = questions + rng.normal(0, 0.05, 60), questions + 0.1 + rng.normal(0, 0.05, 60)
    paired = paired_difference(after, before, 7)
    assert paired is not None
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=2000, method="percentile", rng=7)
    assert (paired.low, paired.high) == pytest.approx(theirs.confidence_interval)
    apart = stats.bootstrap(
        (after, before), lambda a, b: a.mean(-1) - b.mean(-1), n_resamples=2000, method="percentile", rng=7
    ).confidence_interval
    assert paired.low <= 0.1 <= paired.high
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_questions_that_failed_on_either_side_are_left_out() -> None:
    nan = np.nan
    found = paired_difference(np.array([3.0, nan, 1.0]), np.array([1.0, 2.0, nan]), 0)
    assert found is not None
    assert (found.mean, found.low, found.high) == (2.0, 2.0, 2.0)
    assert paired_difference(np.array([nan]), np.array([1.0]), 0) is None


def test_the_rank_correlation_is_spearmans_published_example() -> None:
    """The worked example of hours of television and IQ (Wikipedia, Spearman's rank correlation): -29/165."""
    iq = [86, 97, 99, 100, 101, 103, 106, 110, 112, 113]
    hours = [2.0, 20.0, 28.0, 27.0, 50.0, 29.0, 7.0, 17.0, 6.0, 12.0]
    assert rank_correlation(iq, hours) == pytest.approx(-29 / 165)
    assert rank_correlation([0.0, 1.0], [0.0, 1.0]) is None
    assert rank_correlation([0.0, 1.0, 2.0], [0.5, 0.5, 0.5]) is None


def test_where_a_dose_tips_over() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.02, 40)
    strengths = [0.0, 0.5, 1.0, 2.0]
    rising = [np.full(40, mean) + noise for mean in (0.0, 0.1, 0.2, 0.3)]
    assert tips_over(strengths, rising, 0) is None
    falling = [*rising[:3], np.full(40, 0.1) + rng.normal(0, 0.02, 40)]
    assert tips_over(strengths, falling, 0) == 1.0
    unsure = [*rising[:3], 0.19 + rng.normal(0, 0.5, 40)]
    assert tips_over(strengths, unsure, 0) is None


def dosed(strength: float, effect: float, cost: float) -> Dosed:
    return Dosed(strength, np.array([effect - 0.1, effect + 0.1]), np.array([cost - 0.05, cost + 0.05]))


def test_a_dial_is_turned_to_the_cost_asked_for() -> None:
    """Effect and cost are straight lines between these doses, so the answer is known."""
    doses = [dosed(0.5, 0.1, 0.1), dosed(1.0, 0.3, 0.2), dosed(2.0, 0.5, 0.6)]
    for cost, strength, effect in ((0.05, 0.25, 0.05), (0.1, 0.5, 0.1), (0.15, 0.75, 0.2), (0.4, 1.5, 0.4)):
        found = matched(doses, cost)
        assert found is not None
        assert (found.strength, found.cost) == pytest.approx((strength, cost))
        assert found.effect.mean() == pytest.approx(effect)
    most = matched(doses, 0.9)
    assert most is not None
    assert (most.strength, most.cost) == pytest.approx((2.0, 0.6))  # no dose costs as much
    assert matched(doses, 0.0) is None
    assert matched(doses, -0.2) is None
    assert matched([], 0.1) is None


def test_the_first_place_that_costs_so_much_is_taken() -> None:
    up_and_down = [dosed(0.5, 0.1, 0.2), dosed(1.0, 0.3, 0.1), dosed(2.0, 0.5, 0.6)]
    found = matched(up_and_down, 0.15)
    assert found is not None
    assert found.strength == pytest.approx(0.375)


def test_what_is_counted_in_answers() -> None:
    texts = ["I love art! I love art! I love art!", "Plain 🎉🎉 and open-minded.", ""]
    style = style_of(texts, "openness", 0)
    assert style.words.mean == pytest.approx((9 + 3 + 0) / 3)
    assert style.exclamations.mean == 1.0
    assert style.emoji.mean == pytest.approx(2 / 3)
    assert style.trait_words.mean == pytest.approx(1 / 3)
    assert repeated_runs(texts[0]) == pytest.approx(1 - 3 / 6)  # six runs of four words, three of them different
    assert repeated_runs("one two three") == 0.0
    assert distinct(texts[:2], 1) == pytest.approx(6 / 12)
    assert distinct([""], 2) == 0.0


@pytest.mark.parametrize(
    ("text", "trait", "named"),
    [
        ("Introverts read.", "extraversion", True),
        ("I am DISAGREEABLE today.", "agreeableness", True),
        ("We agreed.", "agreeableness", False),
        ("Emotionally stable people", "neuroticism", True),
        ("My dry humour helps.", "dry_humour", True),
    ],
)
def test_a_trait_named_outright(text: str, trait: str, named: bool) -> None:
    assert names_trait(text, trait) is named


def test_signs_that_are_no_emoji() -> None:
    assert emoji("© 2026 – 50 % °C") == 0
    assert emoji("👩‍👩‍👧") == 3
