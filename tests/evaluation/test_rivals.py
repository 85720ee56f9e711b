"""What an adapter is held against: the residual alone, itself from other seeds; and the figures that go on its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from rule_judge import RuleJudge
from transformers import LlamaForCausalLM

from npti_export.adapter.records import TraitRecord
from npti_export.evaluation.answering import Asker
from npti_export.evaluation.dose.trial import with_dose
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.methods import Rivals, methods_of
from npti_export.evaluation.report.card_scores import with_scores
from npti_export.evaluation.rivals import made_anew, most_residual_answers, residual_alone, selector_of
from npti_export.evaluation.side_by_side import Exam, Subject, evaluate
from npti_export.identification.answers import Decoding
from npti_export.identification.elicit import Transcript
from npti_export.identification.files import TraitFiles
from npti_export.identification.measurement import Measurement
from npti_export.identification.questions import Material
from npti_export.identification.selection import Statistics, run_select
from npti_export.identification.selector import Selector
from npti_export.identification.stages import run_elicit_and_measure
from npti_export.pipeline import work_with
from npti_export.traits import Pole, Term, trait_named
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=12, repetition_penalty=1.15, batch_size=16)
QUESTIONS = [Question("openness", f"Number {at}?", "ab"[at % 2]) for at in range(38)]
PERSONAS = [Persona("openness", Pole.HIGH, "You dream."), Persona("openness", Pole.LOW, "You count.")]
MATERIAL = Material.of(QUESTIONS, PERSONAS, 8, 0)

Measured = tuple[list[Transcript], Statistics, Measurement]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model(context=256)


@pytest.fixture(scope="module")
def measured(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    files = TraitFiles(Path(tmp_path_factory.mktemp("adapter")), "openness")
    return run_elicit_and_measure(work_with(model, TOKENIZER), files, MATERIAL, 1.0)


@pytest.mark.parametrize(
    "selector",
    [
        Selector(min_difference=0.05, caps="none"),
        Selector(),
        Selector("mean-shift"),
        Selector("residual", residual_layers=(2,)),
        Selector("hybrid", residual_layers=(0,)),
        Selector("fitted", residual_layers=(0, 2)),
    ],
    ids=["npti, no caps", "npti", "mean-shift", "residual", "hybrid", "fitted"],
)
def test_made_anew_from_the_same_statistics_it_is_the_same(selector: Selector, measured: Measured) -> None:
    _, statistics, measurement = measured
    selected = run_select("openness", statistics, measurement, selector)
    poles = {pole: with_dose(record, 0.7) for pole, record in selected.poles.items()}
    like = TraitRecord("openness", {pole: replace(record, positions="all") for pole, record in poles.items()})
    fitted: list[TraitRecord] = []

    def fit(trait: TraitRecord) -> TraitRecord:
        fitted.append(trait)
        assert trait.identification is not None
        return replace(trait, identification=replace(trait.identification, seed=77))

    anew = made_anew(like, statistics, measurement, fit)
    assert anew.identification is not None
    assert anew.identification.seed == 77
    assert len(fitted) == len({selector_of(record) for record in like.poles.values()})
    for pole, record in like.poles.items():
        made = anew.poles[pole]
        assert (made.gamma, made.method, made.caps, made.positions) == (0.7, record.method, record.caps, "all")
        assert made.neurons == record.neurons
        if record.residual is None:
            assert made.residual is None
        else:
            assert made.residual is not None
            np.testing.assert_array_equal(made.residual.vector, record.residual.vector)
            np.testing.assert_array_equal(made.residual.layer, record.residual.layer)
    assert selector_of(like.poles[Pole.HIGH]).method == selector.method


def test_the_residual_alone_moves_no_neuron_and_has_a_dose(model: LlamaForCausalLM, measured: Measured) -> None:
    transcripts, statistics, measurement = measured
    base_model = work_with(model, TOKENIZER).base_model
    counted: list[int] = []
    judge = LocalJudge.train(transcripts)
    held_back = MATERIAL.held_back[:4]
    found = residual_alone(
        model, TOKENIZER, base_model, "openness", statistics, measurement, held_back, judge, DECODING, counted.append
    )
    assert 0 < sum(counted) <= most_residual_answers(base_model.num_layers, 4)
    for record in found.traits["openness"].poles.values():
        assert record.method.name == "residual"
        assert record.calibrated
        assert record.residual is not None
        assert not record.neurons.shift.any()


def test_the_figures_of_an_evaluation_go_into_the_adapter(model: LlamaForCausalLM) -> None:
    adapter = make_adapter(model, traits=("openness", "neuroticism"), scores={"other": {"kept": 1}})
    asked = {trait: [Question(trait, f"{what}?") for what in ("Art", "Tea", "Why")] for trait in adapter.traits}
    exam = Exam(asked, {trait: [RuleJudge(trait)] for trait in asked}, bleed_questions=2)
    methods = methods_of(Term("openness", Pole.LOW), trait_named("openness"), adapter, PERSONAS, Rivals(), 0)
    evaluation = evaluate(Asker(model, TOKENIZER, DECODING), [Subject(Term("openness", Pole.LOW), methods[:5])], exam)
    [result] = evaluation.personalities
    scored = with_scores(adapter, evaluation)
    record = scored.traits["openness"].poles[Pole.LOW]
    assert record.scores["other"] == {"kept": 1}
    for called, name in (("effect", "adapter"), ("placebo", "placebo"), ("prompt", "persona prompt")):
        effect = result.method(name).rating().effect  # type: ignore[union-attr]
        expected = [effect.mean, effect.low, effect.high]  # type: ignore[union-attr]
        assert record.scores["rule"][called] == pytest.approx(expected, abs=1e-4)
    assert record.scores["rule"]["questions"] == 3
    assert set(record.scores["rule"]["bleed"]) == {"neuroticism"}
    assert scored.traits["openness"].poles[Pole.HIGH] == adapter.traits["openness"].poles[Pole.HIGH]
    card = scored.contents()["README.md"].decode()
    assert "| `openness-` |" in card
    assert "rule, 3 questions" in card
    # What was measured at another strength is not what the card is about.
    half = methods_of(Term("openness", Pole.LOW, 0.5), trait_named("openness"), adapter, PERSONAS, Rivals(), 0)
    other = evaluate(Asker(model, TOKENIZER, DECODING), [Subject(Term("openness", Pole.LOW, 0.5), half[:5])], exam)
    assert with_scores(adapter, other).traits == adapter.traits
