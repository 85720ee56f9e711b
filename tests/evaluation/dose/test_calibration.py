"""The dose and the way: the budget rule against a slow version, and the search against doses tried one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from chat_models import tiny_chat_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Identification, Method, PoleRecord, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.evaluation.dose.calibration import (
    DOSES,
    DOSES_BY_MEAN,
    Calibration,
    TriedWay,
    best_dose,
    calibrate,
    most_answers,
    way_name,
)
from npti_export.evaluation.dose.trial import TriedDose, with_dose
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.elicit import elicit, plan
from npti_export.steering.personality import load_personality
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=16, repetition_penalty=1.15, batch_size=8)
PERSONAS = [Persona("openness", Pole.HIGH, "You dream."), Persona("openness", Pole.LOW, "You count.")]
ASKED = [Question("openness", f"Question {at}?") for at in range(6)]
HELD_BACK = [Question("openness", f"{what}?") for what in ("Art", "A walk", "Tea")]


def tried(gamma: float, effect: float, high: float) -> TriedDose:
    return TriedDose(gamma, Estimate(effect, effect - 0.1, effect + 0.1), Estimate(high - 0.2, high - 0.4, high))


POINTS = st.lists(
    st.tuples(st.sampled_from([-0.1, 0.0, 0.2, 0.4]), st.sampled_from([0.9, 1.2, 1.5, 1.5001, 3.0])), min_size=1
)


@settings(deadline=None)
@given(POINTS)
def test_the_budget_rule(measured: list[tuple[float, float]]) -> None:
    """It is the upper end of the cost that must keep within the budget."""
    doses = [tried(0.1 * (at + 1), effect, high) for at, (effect, high) in enumerate(measured)]
    chosen = best_dose(doses)
    affordable = [dose for dose in doses if dose.fluency.high <= 1.5]
    if affordable:
        assert chosen in affordable
        assert all(dose.effect.mean <= chosen.effect.mean for dose in affordable)
        assert all(dose.gamma >= chosen.gamma for dose in affordable if dose.effect.mean == chosen.effect.mean)
    else:
        assert all(dose.fluency.high >= chosen.fluency.high for dose in doses)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def base_model(model: LlamaForCausalLM) -> BaseModel:
    return describe_base_model(model, find_sites(model))


def way(method: Method, caps: str = "none", layer: int | None = None, size: float = 0.3, count: int = 3) -> TraitRecord:
    """A trait of few and gentle neurons, the same for every method, so that some doses are affordable and some not."""
    rng = np.random.default_rng(1)
    poles = {}
    for pole, places in zip(Pole, np.split(rng.permutation(3 * 48)[: 2 * count], 2), strict=True):
        flat = np.sort(places)
        target = rng.uniform(0.1, 1.0, count).astype(np.float32)
        delta = rng.uniform(0.1, 0.6, count).astype(np.float32)
        mean = (rng.choice([-1, 1], count) * rng.uniform(0.1, size, count)).astype(np.float32)
        gamma = 1.4 if method.name == "npti" else 1.0
        neurons = NeuronSet(
            layer=(flat // 48).astype(np.int16),
            index=(flat % 48).astype(np.int32),
            shift=method.shift(gamma, target, delta, mean),
            target=target,
            delta=delta,
            mean_difference=mean,
            effect_size=np.float32(3) * mean,
        )
        vector = rng.normal(0, size, (1, 32)).astype(np.float32)
        residual = None if layer is None else ResidualShift(np.array([layer], np.int16), vector)
        poles[pole] = PoleRecord(neurons, gamma, method, caps=caps, residual=residual)  # type: ignore[arg-type]
    sure = Identification(selection_overlap={"high": size, "low": size / 2}, delta_margin={"high": 0.1, "low": None})
    return TraitRecord("openness", poles, sure)


BY_MEAN = Method("mean-shift", min_effect_size=0.1)
WAYS = [
    [way(Method(), "opposite")],
    [way(Method())],
    [way(BY_MEAN, size=0.31), way(BY_MEAN, size=0.6, count=9)],
    [way(Method("residual"), layer=layer, size=0.05 * (layer + 2)) for layer in range(3)],
    [way(Method("hybrid", min_effect_size=0.1), layer=1)],
]


@pytest.fixture(scope="module")
def judge(model: LlamaForCausalLM) -> LocalJudge:
    return LocalJudge.train(elicit(model, TOKENIZER, plan(ASKED, PERSONAS, 0), decoding=DECODING))


@pytest.fixture(scope="module")
def calibration(model: LlamaForCausalLM, base_model: BaseModel, judge: LocalJudge) -> Calibration:
    progress: list[int] = []
    found = calibrate(model, TOKENIZER, base_model, WAYS, HELD_BACK, judge, DECODING, progress.append)
    doses = sum(len(way.doses) for pole in Pole for way in found.tried[pole])
    left_behind = 2 * (1 + 2)  # of the lists, ways that did worse at the middle dose
    assert sum(progress) == (1 + doses + left_behind) * len(HELD_BACK) <= most_answers(WAYS, len(HELD_BACK))
    return found


def test_what_was_measured_is_what_doses_tried_one_by_one_give(
    model: LlamaForCausalLM, base_model: BaseModel, judge: LocalJudge, calibration: Calibration
) -> None:
    texts = [question.text for question in HELD_BACK]
    prompts = [Prompt(text) for text in texts]
    base = generate_answers(model, TOKENIZER, prompts, DECODING)
    for pole, sign in ((Pole.HIGH, 1), (Pole.LOW, -1)):
        assert len(calibration.tried[pole]) == len(WAYS)
        for tried_way in calibration.tried[pole]:
            of_pole = tried_way.trait.poles[pole]
            for dose in (tried_way.doses[0], tried_way.doses[-1]):
                neurons = of_pole.neurons
                f = np.array([1 / (1 + math.exp(-10 * (delta - 0.15))) for delta in neurons.delta.astype(float)])
                moved = {
                    "npti": neurons.target.astype(float) * f,
                    "residual": np.zeros(len(neurons)),
                }.get(of_pole.method.name, neurons.mean_difference.astype(float))
                changed = replace(
                    of_pole,
                    gamma=dose.gamma,
                    neurons=replace(neurons, shift=(dose.gamma * moved).astype(np.float32)),
                    residual=of_pole.residual
                    and replace(of_pole.residual, vector=(dose.gamma * of_pole.residual.vector).astype(np.float32)),
                )
                trait = replace(tried_way.trait, poles={**tried_way.trait.poles, pole: changed})
                adapter = PersonalityAdapter(base_model, {"openness": trait})
                with load_personality(model, f"openness{pole.sign}", adapter):
                    said = generate_answers(model, TOKENIZER, prompts, DECODING)
                effect = judge.scores([a.text for a in said]) - judge.scores([a.text for a in base])
                rise = answer_nll(model, TOKENIZER, texts, said) - answer_nll(model, TOKENIZER, texts, base)
                assert dose.effect.mean == pytest.approx(sign * effect.mean(), abs=1e-4)
                assert dose.fluency.mean == pytest.approx(math.exp(rise.mean()), abs=1e-3)
                # The interval of three questions reaches from below the mean to no further than the largest of them.
                assert dose.fluency.mean <= dose.fluency.high <= math.exp(rise.max()) + 1e-3


def test_halving_finds_the_largest_affordable_dose(calibration: Calibration) -> None:
    both = set()
    for pole in Pole:
        chosen, *others = calibration.tried[pole]
        for tried_way in (chosen, *others):
            grid = DOSES if tried_way.record.method.name == "npti" else DOSES_BY_MEAN
            every = {dose.gamma: dose.affordable for dose in tried_way.doses}
            assert list(every) == sorted(every)
            measured = {gamma: fits for gamma, fits in every.items() if gamma in grid}
            between = sorted(set(every) - set(measured))
            assert grid[3] in measured
            below = max((grid.index(gamma) for gamma, fits in measured.items() if fits), default=-1)
            if below + 1 < len(grid):  # the next one was measured and is not affordable
                assert measured[grid[below + 1]] is False
            both |= set(measured.values())
            if tried_way is chosen:
                assert set(grid[:below]) <= set(measured)  # the dose curve has all that are smaller
                middle = [round((grid[below] * grid[below + 1]) ** 0.5, 2)] if below + 1 < len(grid) else []
                assert between == middle
            else:
                assert len(every) == 3
    assert both == {True, False}


def test_the_pole_is_written_at_its_dose(calibration: Calibration) -> None:
    assert calibration.trait.name == "openness"
    for pole, record in calibration.trait.poles.items():
        chosen, *others = calibration.tried[pole]
        best = best_dose(chosen.doses)
        assert record.calibrated
        assert record.gamma == best.gamma
        curve = [(point.gamma, point.effect, point.fluency) for point in record.dose_curve]
        assert curve == [(dose.gamma, dose.effect.mean, dose.fluency.mean) for dose in chosen.doses]
        assert (record.method, record.caps) == (chosen.record.method, chosen.record.caps)
        assert record.neurons == replace(chosen.record.neurons, shift=record.neurons.shift)
        neurons = record.neurons
        shift = record.method.shift(record.gamma, neurons.target, neurons.delta, neurons.mean_difference)
        np.testing.assert_array_equal(neurons.shift, shift)
        reason = calibration.reasons[pole]
        assert reason.startswith(f"{way_name(record)}, γ {record.gamma:g}, effect {best.effect.mean:+.2f} [")
        assert best.affordable
        assert "the largest effect found whose cost keeps within 1.5 up to the end of its interval" in reason
        rivals = [best_dose(other.doses) for other in others if best_dose(other.doses).affordable]
        assert f"effect {max(rival.effect.mean for rival in rivals):+.2f}." in reason.rpartition("next is")[2]
        made = calibration.trait.identification
        assert made.selection_overlap[pole] == chosen.trait.identification.selection_overlap[pole]
    assert calibration.trait.identification.delta_margin == {"high": 0.1, "low": None}


def test_the_ways_taken_are_the_best_that_go_together(calibration: Calibration) -> None:
    """Every pair of ways, the long way round."""
    worths = {}
    for high in calibration.tried[Pole.HIGH]:
        for low in calibration.tried[Pole.LOW]:
            methods = {high.record.method.name, low.record.method.name}
            if "opposite" in (high.record.caps, low.record.caps) and not methods <= {"npti", "residual"}:
                continue
            bests = [best_dose(high.doses), best_dose(low.doses)]
            worths[id(high), id(low)] = (sum(b.affordable for b in bests), sum(b.effect.mean for b in bests))
    taken = worths[id(calibration.tried[Pole.HIGH][0]), id(calibration.tried[Pole.LOW][0])]
    assert taken[0] == 2
    assert taken == max(worths.values())


def capping(record: TraitRecord, effect: float, pole: Pole) -> TriedWay:
    return TriedWay(record, pole, (tried(1.0, effect, 1.2),))


def test_caps_are_taken_only_with_the_neurons_that_were_capped() -> None:
    from npti_export.evaluation.dose.calibration import chosen_ways

    capped, free, raised = way(Method(), "opposite"), way(Method()), way(Method(min_difference=0.2))
    shifted = way(BY_MEAN)
    of_low = [capping(free, 0.1, Pole.LOW), capping(raised, 0.3, Pole.LOW), capping(shifted, 0.4, Pole.LOW)]
    for effect, expected in ((0.35, "none"), (0.75, "opposite")):  # .35 and .1 with caps; .2 and .4 without
        of_high = [capping(capped, effect, Pole.HIGH), capping(free, 0.2, Pole.HIGH)]
        chosen = chosen_ways({Pole.HIGH: of_high, Pole.LOW: of_low})
        assert chosen[Pole.HIGH].record.caps == expected
        assert chosen[Pole.LOW].trait is (free if expected == "opposite" else shifted)


def test_another_dose_of_a_residual() -> None:
    record = way(Method("hybrid", min_effect_size=0.1), layer=2).poles[Pole.LOW]
    dosed = with_dose(record, 2.8)
    np.testing.assert_array_equal(dosed.residual.vector, (2.8 * record.residual.vector.astype(float)).astype("f4"))
    mean = record.neurons.mean_difference.astype(float)
    np.testing.assert_array_equal(dosed.neurons.shift, (2.8 * mean).astype("f4"))
    assert with_dose(dosed, 1.0).residual.layer.tolist() == [2]
    assert way_name(dosed) == "hybrid behind layer 2, 3 neurons of |d| ≥ 0.1"
    assert way_name(way(Method("residual"), layer=0).poles[Pole.LOW]) == "residual behind layer 0"
    assert way_name(way(Method(min_difference=0.2)).poles[Pole.LOW]) == "npti, δ ≥ 0.2, caps none"


def test_where_nothing_is_affordable_the_cheapest_is_taken_and_said_so(
    model: LlamaForCausalLM, base_model: BaseModel, judge: LocalJudge
) -> None:
    ways = [[way(Method("residual"), layer=0, size=50.0)], [way(Method("residual"), layer=0, size=90.0)]]
    found = calibrate(model, TOKENIZER, base_model, ways, HELD_BACK, judge, DECODING)
    for pole in Pole:
        doses = [dose for tried_way in found.tried[pole] for dose in tried_way.doses]
        assert not any(dose.affordable for dose in doses)
        assert "nothing keeps within 1.5 times the perplexity, and this costs least" in found.reasons[pole]
        assert found.trait.poles[pole].calibrated


def test_it_does_not_score_questions_of_the_judges_training(
    model: LlamaForCausalLM, base_model: BaseModel, judge: LocalJudge
) -> None:
    with pytest.raises(NptiError, match=r"trained on answers to 'Question 2\?' and must not score it"):
        calibrate(model, TOKENIZER, base_model, WAYS, [*HELD_BACK, ASKED[2]], judge, DECODING)
