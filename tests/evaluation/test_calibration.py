"""The dose: the budget rule against a slow version, and the sweep against doses tried one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import DosePoint
from npti_export.errors import NptiError
from npti_export.evaluation.calibration import DOSES, MAX_FLUENCY, best_dose, calibrate, with_dose
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.local_judge import LocalJudge
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.elicit import elicit, plan
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=16, repetition_penalty=1.15, batch_size=8)
PERSONAS = [Persona("openness", Pole.HIGH, "You dream."), Persona("openness", Pole.LOW, "You count.")]
ASKED = [Question("openness", f"Question {at}?") for at in range(6)]
HELD_BACK = [Question("openness", f"{what}?") for what in ("Art", "A walk", "Tea")]

POINTS = st.lists(
    st.tuples(st.sampled_from([-0.1, 0.0, 0.2, 0.4]), st.sampled_from([0.9, 1.2, 1.5, 1.5001, 3.0])), min_size=1
)


@settings(deadline=None)
@given(POINTS)
def test_the_budget_rule(measured: list[tuple[float, float]]) -> None:
    curve = [DosePoint(0.1 * (at + 1), effect, fluency) for at, (effect, fluency) in enumerate(measured)]
    chosen = best_dose(curve)
    affordable = [point for point in curve if point.fluency <= 1.5]
    if affordable:
        assert chosen in affordable
        assert all(point.effect <= chosen.effect for point in affordable)
        assert all(point.gamma >= chosen.gamma for point in affordable if point.effect == chosen.effect)
    else:
        assert all(point.fluency >= chosen.fluency for point in curve)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def adapter(model: LlamaForCausalLM) -> PersonalityAdapter:
    """Few and gentle neurons, so that some doses stay within the budget and some do not."""
    adapter = make_adapter(model, traits=("openness",))
    record = adapter.traits["openness"]
    poles = {}
    for pole, of_pole in record.poles.items():
        few = {name: array[::6] for name, array in of_pole.neurons.arrays().items()}
        poles[pole] = with_dose(replace(of_pole, neurons=replace(of_pole.neurons, **few)), 9.0)  # a dose to be found
    return adapter.with_trait(replace(record, poles=poles))


@pytest.fixture(scope="module")
def judge(model: LlamaForCausalLM) -> LocalJudge:
    return LocalJudge.train(elicit(model, TOKENIZER, plan(ASKED, PERSONAS, 0), decoding=DECODING))


def test_the_sweep_is_that_of_doses_tried_one_by_one(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, judge: LocalJudge
) -> None:
    progress: list[int] = []
    record = calibrate(model, TOKENIZER, adapter, "openness", HELD_BACK, judge, DECODING, progress.append)
    assert sum(progress) == (2 * len(DOSES) + 1) * len(HELD_BACK)
    texts = [question.text for question in HELD_BACK]
    prompts = [Prompt(text) for text in texts]
    base = generate_answers(model, TOKENIZER, prompts, DECODING)
    original = adapter.traits["openness"]
    for pole, sign in ((Pole.HIGH, 1), (Pole.LOW, -1)):
        curve = []
        for gamma in (0.2, 0.35, 0.5, 0.7, 1.0, 1.4):
            of_pole = original.poles[pole]
            neurons = of_pole.neurons
            f = np.array([1 / (1 + math.exp(-10 * (delta - 0.15))) for delta in neurons.delta.astype(float)])
            shift = (gamma * neurons.target.astype(float) * f).astype(np.float32)
            tried = replace(of_pole, gamma=gamma, neurons=replace(neurons, shift=shift))
            poles = {**original.poles, pole: tried}
            with load_personality(model, f"openness{pole.sign}", adapter.with_trait(replace(original, poles=poles))):
                said = generate_answers(model, TOKENIZER, prompts, DECODING)
            effect = np.mean(judge.scores([a.text for a in said]) - judge.scores([a.text for a in base]))
            rise = np.mean(answer_nll(model, TOKENIZER, texts, said) - answer_nll(model, TOKENIZER, texts, base))
            curve.append((gamma, sign * effect, math.exp(rise)))
        found = record.poles[pole]
        assert found.calibrated
        measured = [(point.gamma, point.effect, point.fluency) for point in found.dose_curve]
        np.testing.assert_allclose(measured, curve, atol=1e-4)
        assert found.gamma == best_dose(found.dose_curve).gamma
        assert any(point.fluency > MAX_FLUENCY for point in found.dose_curve)
        np.testing.assert_allclose(
            found.neurons.shift, found.method.shift(found.gamma, found.neurons.target, found.neurons.delta)
        )
        assert found.neurons == replace(original.poles[pole].neurons, shift=found.neurons.shift)
    assert record.name == "openness"


def test_it_does_not_score_questions_of_the_judges_training(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, judge: LocalJudge
) -> None:
    with pytest.raises(NptiError, match=r"trained on answers to 'Question 2\?' and must not score it"):
        calibrate(model, TOKENIZER, adapter, "openness", [*HELD_BACK, ASKED[2]], judge, DECODING)
