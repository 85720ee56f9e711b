"""What is added up over an evaluation, on records whose sums can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from npti_export.evaluation.dose.sums import deviation_of_differences, power_note, sum_of_poles, wins_against
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.judges.judges_agree import agreements
from npti_export.evaluation.report.published_figures import published_for
from npti_export.evaluation.report.table import to_markdown, verdict_lines
from npti_export.evaluation.results import (
    Difference,
    Evaluation,
    Fluency,
    JudgeSettings,
    MethodResult,
    PersonalityResult,
    Rating,
    Settings,
    Style,
)
from npti_export.identification.answers import Decoding
from npti_export.traits import Pole

ONE = Estimate(1.0, 0.9, 1.1)
Scores = tuple[float | None, ...]


def rating(judge: str, scores: Scores) -> Rating:
    count = len(scores)
    return Rating(judge, "trait", scores, ("",) * count, (None,) * count, ONE, 0.1, ONE)


def method(name: str, *ratings: Rating) -> MethodResult:
    count = len(ratings[0].scores)
    fluency = Fluency((1.0,) * count, ONE, (1.0,) * count, ONE, ONE, 0.5, 0.5, 0.0)
    answers = tuple(f"{name} {at}" for at in range(count))
    return MethodResult(name, None, answers, ratings, fluency, Style(ONE, ONE, ONE, ONE))


def evaluation(
    high: dict[str, Scores], low: dict[str, Scores], model: str = "some/model", scale: tuple[float, float] = (0.0, 1.0)
) -> Evaluation:
    results = []
    for pole, scores in ((Pole.HIGH, high), (Pole.LOW, low)):
        count = len(next(iter(scores.values())))
        methods = tuple(method(name, rating("local", of_method)) for name, of_method in scores.items())
        differences = tuple(
            Difference("adapter", name, Estimate(mean, mean - 0.1, mean + 0.1))
            for name, mean in (("plain prompt", 0.05 if pole is Pole.HIGH else -0.2), ("placebo", 0.3))
        )
        questions = tuple(f"{at}?" for at in range(count))
        results.append(PersonalityResult("openness", pole, questions, ("",) * count, methods, differences))
    judges = (JudgeSettings("local", "trait", *scale),)
    settings = Settings(model, "adapter", Decoding(400, 1.15), 4, 0, 0, judges)
    return Evaluation(settings, tuple(results))


HIGH: dict[str, Scores] = {"unsteered": (0.5, 0.5, 0.5, 0.5), "adapter": (1.0, 0.5, 0.75, None)}
LOW: dict[str, Scores] = {"unsteered": (0.5, 0.5, 0.5, 0.5), "adapter": (0.25, 0.0, 0.25, 0.0)}


def test_the_sum_of_the_poles_is_as_published() -> None:
    """On 1 to 5 the adapter has 5, 3, 4 and 2, 1, 2: 5 + 4, 3 + 5, 4 + 4, the failed question left out."""
    found = sum_of_poles(evaluation(HIGH, LOW), "openness", "adapter")
    assert found is not None
    sums = np.array([9.0, 8.0, 8.0])
    theirs = stats.bootstrap((sums,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert found.total.mean == pytest.approx(25 / 3)
    assert (found.total.low, found.total.high) == pytest.approx((theirs.low, theirs.high))
    assert found.variance == pytest.approx((1.0 + 1 / 3) / 2)
    neither = sum_of_poles(evaluation(HIGH, LOW), "openness", "unsteered")
    assert neither is not None
    assert neither.total.mean == pytest.approx(6.0)
    assert sum_of_poles(evaluation(HIGH, LOW), "openness", "lora") is None


def test_the_best_possible_sum_is_ten() -> None:
    found = sum_of_poles(
        evaluation({"adapter": (5.0, 5.0)}, {"adapter": (1.0, 1.0)}, scale=(1.0, 5.0)), "openness", "adapter"
    )
    assert found is not None
    assert found.total.mean == 10.0


def test_published_figures_stand_only_beside_their_own_base_model() -> None:
    text = to_markdown(evaluation(HIGH, LOW, "meta-llama/Meta-Llama-3-8B-Instruct"))
    assert "NPTI 9.43 (0.49); simple prompt 8.39 (0.96)" in text
    assert "so these sums are not those of a GPT-4o judge" in text
    other = to_markdown(evaluation(HIGH, LOW, "some/model"))
    assert "9.43" not in other
    assert "No figures are published for some/model" in other
    assert published_for("meta-llama/Llama-3.1-8B-Instruct") == ()


def test_wins_are_counted_and_losses_named() -> None:
    found = evaluation(HIGH, LOW)
    plain, placebo = wins_against(found, "plain prompt"), wins_against(found, "placebo")
    assert (plain.more, plain.surely, plain.of) == (1, 0, 2)
    assert (placebo.more, placebo.surely, placebo.of) == (2, 2, 2)
    assert wins_against(found, "plain prompt", matched=True).of == 0
    with_both = evaluation(HIGH | {"plain prompt": (0.0,) * 4}, LOW | {"plain prompt": (0.0,) * 4})
    lines = verdict_lines(with_both)
    assert lines[0] == "Adapter against plain prompt: the larger effect at 1 of 2 poles (surely at 0)."
    assert (
        lines[-1]
        == "Where the adapter does not beat the plain prompt, the difference is: openness- -0.20 [-0.30, -0.10]."
    )


def test_the_power_note_goes_by_how_much_differences_vary() -> None:
    found = evaluation(HIGH, LOW)
    of_poles = [np.var([0.5, 0.0, 0.25], ddof=1), np.var([-0.25, -0.5, -0.25, -0.5], ddof=1)]
    deviation = deviation_of_differences(found, "unsteered")
    assert deviation == pytest.approx(np.sqrt(np.mean(of_poles)))
    note = power_note(found, "unsteered")
    assert note is not None
    needed = int(note.split(" needs ")[1].split()[0])
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.1, deviation, (20_000, needed))
    assert (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    assert power_note(found, "lora") is None


def test_two_judges_agree_as_far_as_their_scores_do() -> None:
    """One judge is always a point kinder on a scale twice as long: the ranks agree, the scores do not quite."""
    first: Scores = (1.0, 2.0, 3.0, 4.0)
    second: Scores = (2.0, 6.0, 10.0, None)
    result = PersonalityResult(
        "openness",
        Pole.HIGH,
        ("a?", "b?", "c?", "d?"),
        ("",) * 4,
        (method("unsteered", rating("local", first), rating("other", second)),),
    )
    judges = (JudgeSettings("local", "trait", 1.0, 5.0), JudgeSettings("other", "trait", 0.0, 10.0))
    [found] = agreements(judges, (result,))
    assert (found.judges, found.answers, found.spearman) == (("local", "other"), 3, pytest.approx(1.0))
    # Drawn to 0 to 1: 0, .25, .5 and .2, .6, 1. Krippendorff's alpha by hand: 1 - observed / expected.
    a, b = np.array([0.0, 0.25, 0.5]), np.array([0.2, 0.6, 1.0])
    values = np.concatenate([a, b])
    pairs = [(x - y) ** 2 for i, x in enumerate(values) for j, y in enumerate(values) if i != j]
    assert found.alpha == pytest.approx(1 - np.mean((a - b) ** 2) / np.mean(pairs))
    assert agreements(judges[:1], (result,)) == ()
