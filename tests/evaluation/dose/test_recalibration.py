"""Doses found over the whole range against doses tried one by one, position modes, and sums that overdose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from rule_judge import RuleJudge, rule
from scipy import stats
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.dose.calibration import DOSES, TriedWay, best_dose
from npti_export.evaluation.dose.capability_budget import Capable
from npti_export.evaluation.dose.overdose import SumCost, check_sums, sums_to_check
from npti_export.evaluation.dose.recalibration import Recalibrated, own_questions, recalibrate, write_calibration
from npti_export.evaluation.dose.sweep import Searched, best_positions
from npti_export.evaluation.dose.trial import DoseBudget, TriedDose, with_dose
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import Estimate
from npti_export.identification.answers import Answer, Decoding, Prompt, generate_answers
from npti_export.identification.elicit import Transcript
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole
from npti_export.traits.material import Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=10, repetition_penalty=1.15, batch_size=8)
TRAITS = ("openness", "neuroticism")
QUESTIONS = {"openness": ["Art?", "A walk?", "Tea?", "Why?"], "neuroticism": ["Rain?", "Late?", "A noise?", "Now?"]}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model(context=256)


@pytest.fixture(scope="module")
def adapter(model: LlamaForCausalLM) -> PersonalityAdapter:
    whole = make_adapter(model, traits=TRAITS)
    for trait in whole.traits.values():
        poles = {pole: replace(record, scores={"local": {"effect": [1, 1, 1]}}) for pole, record in trait.poles.items()}
        whole = whole.with_trait(replace(trait, poles=poles))
    return whole


def found_by(
    model: LlamaForCausalLM,
    adapter: PersonalityAdapter,
    budget: DoseBudget,
    positions: tuple[str, ...] = (),
    traits: tuple[str, ...] = ("openness",),
    keep_in: Path | None = None,
) -> Recalibrated:
    open_now: list[str] = []

    @contextmanager
    def stage(what: str, steps: int) -> Iterator[Callable[[int], None]]:
        counted: list[int] = []

        def tell(done: int) -> None:
            assert open_now == [what]  # what is asked is seen where it is asked
            counted.append(done)

        open_now.append(what)
        yield tell
        open_now.remove(what)
        assert 0 < sum(counted) <= steps

    judges = {trait: [RuleJudge(trait), RuleJudge(trait, "fluency")][: 2 if budget.loss else 1] for trait in traits}
    ways = {trait: [[adapter.traits[trait]]] for trait in traits}
    return recalibrate(
        model,
        TOKENIZER,
        adapter,
        ways,
        positions,
        {trait: QUESTIONS[trait] for trait in traits},
        judges,
        DECODING,
        budget,
        stage,
        keep_in,
    )


@pytest.fixture(scope="module")
def found(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> Recalibrated:
    return found_by(model, adapter, DoseBudget(2.0), traits=TRAITS)


def answers_of(model: LlamaForCausalLM, adapter: PersonalityAdapter | None, spec: str, questions: list[str]) -> list:
    prompts = [Prompt(question) for question in questions]
    with load_personality(model, spec, adapter) if adapter else nullcontext():
        return generate_answers(model, TOKENIZER, prompts, DECODING)


def test_every_dose_is_what_it_is_when_tried_alone(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: Recalibrated
) -> None:
    texts = QUESTIONS["openness"]
    base = answers_of(model, None, "", texts)
    base_nll = answer_nll(model, TOKENIZER, texts, base)
    for pole, swept in found.swept["openness"].items():
        assert {dose.gamma for dose in swept.way.doses} >= set(DOSES)
        for dose in (swept.way.doses[0], swept.way.doses[-1]):
            trait = adapter.traits["openness"]
            poles = {**trait.poles, pole: with_dose(trait.poles[pole], dose.gamma)}
            alone = PersonalityAdapter(adapter.base_model, {"openness": replace(trait, poles=poles)})
            said = answers_of(model, alone, f"openness{pole.sign}", texts)
            sign = 1 if pole is Pole.HIGH else -1
            changes = [sign * (rule(a.text) - rule(b.text)) / 10 for a, b in zip(said, base, strict=True)]
            assert dose.changes == pytest.approx(changes)
            assert dose.effect.mean == pytest.approx(np.mean(changes), abs=1e-4)
            rise = answer_nll(model, TOKENIZER, texts, said) - base_nll
            assert dose.fluency.mean == pytest.approx(np.exp(rise.mean()), rel=1e-3)


def test_the_adapter_has_the_best_dose_that_is_affordable(adapter: PersonalityAdapter, found: Recalibrated) -> None:
    for name, poles in found.swept.items():
        for pole, swept in poles.items():
            record = found.adapter.traits[name].poles[pole]
            affordable = [dose for dose in swept.way.doses if dose.fluency.high <= 2.0]
            best = best_dose(swept.way.doses)
            if affordable:
                assert best in affordable
                assert best.effect.mean == max(dose.effect.mean for dose in affordable)
            assert (record.gamma, record.calibrated, record.scores) == (best.gamma, True, {})
            expected = with_dose(adapter.traits[name].poles[pole], best.gamma)
            np.testing.assert_array_equal(record.neurons.shift, expected.neurons.shift)
            assert [point.gamma for point in record.dose_curve] == sorted(dose.gamma for dose in swept.way.doses)
            effects = [0.0, *(dose.effect.mean for dose in swept.way.doses)]
            gammas = [0.0, *(dose.gamma for dose in swept.way.doses)]
            if len(set(effects)) > 1:
                assert swept.rank_correlation == pytest.approx(stats.spearmanr(gammas, effects).statistic)


def test_the_calibrated_adapter_is_written_with_what_was_tried(found: Recalibrated, tmp_path: Path) -> None:
    found.adapter.save_pretrained(tmp_path)
    write_calibration(tmp_path, found)
    assert PersonalityAdapter.from_pretrained(tmp_path).traits.keys() == found.adapter.traits.keys()
    tried = json.loads((tmp_path / "statistics" / "openness.calibration.json").read_bytes())
    swept = found.swept["openness"][Pole.LOW]
    assert tried["low"]["gamma"] == swept.way.best.gamma
    assert len(tried["low"]["doses"]) == len(swept.way.doses)
    sums = json.loads((tmp_path / "statistics" / "sums.json").read_bytes())
    assert [entry["personality"] for entry in sums] == [cost.personality for cost in found.sums]
    # A dose that benchmarks brought down is said to be another than the one that was tried.
    assert tried["low"]["capability"] is None
    lost = Capable("openness-", 0.8, "parity acc,none", 1.5, affordable=True)
    write_calibration(tmp_path, replace(found, capable=(lost,)))
    tried = json.loads((tmp_path / "statistics" / "openness.calibration.json").read_bytes())
    assert (tried["low"]["capability"]["share"], tried["high"]["capability"]) == (0.8, None)


def test_a_small_budget_is_kept_or_it_is_said_that_it_cannot_be(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: Recalibrated
) -> None:
    tight = found_by(model, adapter, DoseBudget(1.05))
    for name, poles in tight.swept.items():
        for pole, swept in poles.items():
            best = swept.way.best
            affordable = [dose for dose in swept.way.doses if dose.fluency.high <= 1.05]
            said = any(f"{name}{pole.sign}: no dose keeps within the budget" in told for told in tight.warnings)
            assert said == (not affordable)
            if affordable:
                assert best.effect.mean == max(dose.effect.mean for dose in affordable)
                assert found.swept[name][pole].way.best.affordable
            else:
                assert best.fluency.high == min(dose.fluency.high for dose in swept.way.doses)


def test_a_run_that_was_broken_off_asks_only_what_is_missing(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in = tmp_path / "statistics" / "kept.jsonl"
    first = found_by(model, adapter, DoseBudget(2.0), keep_in=keep_in)
    lines = keep_in.read_bytes().splitlines(keepends=True)
    keep_in.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    asked: list[int] = []

    def counted(*arguments: Any) -> list[Answer]:
        asked.append(1)
        return generate_answers(*arguments)

    for module in ("trial", "overdose"):
        monkeypatch.setattr(f"npti_export.evaluation.dose.{module}.generate_answers", counted)
    for missing in (len(lines) - 5, 0):
        again = found_by(model, adapter, DoseBudget(2.0), keep_in=keep_in)
        assert (again.swept, again.sums, again.adapter.traits) == (first.swept, first.sums, first.adapter.traits)
        assert len(asked) == missing
        asked.clear()
    # Another budget is found on the same answers, but for the dose between two.
    found_by(model, adapter, DoseBudget(1.2), keep_in=keep_in)
    assert len(asked) < len(lines) / 2


def test_where_a_judge_rates_fluency_its_loss_decides(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    """The ratio alone would forbid every dose."""
    found = found_by(model, adapter, DoseBudget(0.01, 0.05))
    taken = [swept.way.best for poles in found.swept.values() for swept in poles.values()]
    assert any(dose.affordable for dose in taken)
    for poles in found.swept.values():
        for swept in poles.values():
            for dose in swept.way.doses:
                assert dose.loss is not None
                assert dose.affordable == (dose.loss.high <= 0.05)


def test_sums_are_checked_and_what_overdoses_is_named(model: LlamaForCausalLM, found: Recalibrated) -> None:
    specs = [str(spec) for spec in sums_to_check(found.adapter, ["openness"])]
    assert sorted(specs) == sorted(f"openness{a},neuroticism{b}" for a in "+-" for b in "+-")
    assert sorted(cost.personality for cost in found.sums) == sorted(specs)
    ratios = [cost.ratio.mean for cost in found.sums]
    assert ratios == sorted(ratios, reverse=True)
    questions = [text for texts in QUESTIONS.values() for text in texts]
    base = answer_nll(model, TOKENIZER, questions, answers_of(model, None, "", questions))
    worst = found.sums[0]
    said = answers_of(model, found.adapter, worst.personality, questions)
    rise = answer_nll(model, TOKENIZER, questions, said) - base
    assert worst.ratio.mean == pytest.approx(np.exp(rise.mean()), rel=1e-3)
    over = [cost for cost in found.sums if cost.ratio.mean > 2.0]
    assert [cost for cost in found.sums if cost.overdoses] == over
    one = Estimate(2.5, 2.0, 3.0)
    warned = replace(
        found, sums=(SumCost("openness+,neuroticism-", one, True), SumCost("openness+,neuroticism+", one, False))
    )
    assert any("1 of 2 sums cost more" in said and "openness+,neuroticism- 2.50" in said for said in warned.warnings)


def test_poles_that_steer_different_tokens_are_not_summed(model: LlamaForCausalLM) -> None:
    mixed = make_adapter(model, traits=TRAITS)
    other = make_adapter(model, traits=("neuroticism",), positions="all")
    assert sums_to_check(mixed.with_trait(other.traits["neuroticism"]), TRAITS) == []
    three = make_adapter(model, traits=("openness", "extraversion", "neuroticism"))
    specs = [str(spec) for spec in sums_to_check(three, ["openness"])]
    assert len(specs) == 2 * 4 + 2
    assert "openness+,extraversion+,neuroticism+" in specs
    assert check_sums(model, TOKENIZER, mixed, [], QUESTIONS["openness"], DECODING, 1.3) == []


def test_other_position_modes_are_tried_and_all_poles_get_the_same(
    model: LlamaForCausalLM, adapter: PersonalityAdapter
) -> None:
    tried = found_by(model, adapter, DoseBudget(2.0), ("generated", "last_prompt+generated"), TRAITS)
    modes = {record.positions for trait in tried.adapter.traits.values() for record in trait.poles.values()}
    assert len(modes) == 1


def test_traits_of_different_positions_keep_their_own(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    everywhere = make_adapter(model, traits=("neuroticism",), positions="all")
    found = found_by(model, adapter.with_trait(everywhere.traits["neuroticism"]), DoseBudget(2.0), traits=TRAITS)
    positions = {name: {of.positions for of in trait.poles.values()} for name, trait in found.adapter.traits.items()}
    assert positions == {"openness": {"generated"}, "neuroticism": {"all"}}
    assert found.sums == ()  # such poles cannot be summed


def searched(trait: str, worths: dict[str, float], adapter: PersonalityAdapter) -> Searched:
    def way(pole: Pole, effect: float) -> TriedWay:
        dose = TriedDose(1.0, Estimate(effect, effect, effect), Estimate(1.0, 1.0, 1.0))
        return TriedWay(adapter.traits["openness"], pole, (dose,))

    return Searched(trait, {mode: {pole: (way(pole, effect),) for pole in Pole} for mode, effect in worths.items()})


def test_the_position_mode_that_does_best_over_all_traits_is_taken(adapter: PersonalityAdapter) -> None:
    one = searched("openness", {"generated": 0.3, "last_prompt+generated": 0.4}, adapter)
    other = searched("neuroticism", {"generated": 0.5, "last_prompt+generated": 0.3}, adapter)
    assert best_positions([one]) == "last_prompt+generated"
    assert best_positions([one, other]) == "generated"
    # What stands in the adapter and is left alone decides, or it could not be summed with the rest.
    assert best_positions([one], ["generated", "generated"]) == "generated"


def test_its_questions_are_those_that_identification_did_not_ask() -> None:
    questions = [Question("openness", f"{at}?", "ab"[at % 2]) for at in range(8)]
    asked = [Transcript("openness", Pole.HIGH, f"{at}?", "You.", "Yes.", (1,), True) for at in range(3)]
    own = own_questions(questions, asked, "openness", 4, 0)
    assert len(set(own)) == 4
    assert not set(own) & {"0?", "1?", "2?"}
    with pytest.raises(NptiError, match="1 of 4 questions were not asked in identification, and at least 2"):
        own_questions(questions[:4], asked, "openness", 4, 0)
