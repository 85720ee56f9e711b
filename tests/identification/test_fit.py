"""Fitted vectors: they find what a planted vector had the model write, and leave no trace in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.identification.answers import Answer, Decoding, Prompt, generate_answers, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.identification.files import TraitFiles
from npti_export.identification.fit import EPOCHS, behind_question, fit_way, fit_ways, most_fitted
from npti_export.identification.questions import Material
from npti_export.identification.selection import run_select, select_into
from npti_export.identification.selector import Selector, ways_to_try
from npti_export.identification.stages import run_elicit_and_measure
from npti_export.pipeline import work_with
from npti_export.steering.personality import load_personality
from npti_export.steering.thinking import Thinking
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=16, repetition_penalty=1.0, batch_size=16)
QUESTIONS = [f"Number {at} of many?" for at in range(24)]
PERSONAS = [Persona("openness", Pole.HIGH, "You dream."), Persona("openness", Pole.LOW, "You count.")]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model(context=128)


@pytest.fixture(scope="module")
def selected(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> TraitRecord:
    """A trait as select makes it by the method, from answers in character."""
    material = Material.of([Question("openness", f"{at}?", "ab"[at % 2]) for at in range(38)], PERSONAS, 8, 0)
    files = TraitFiles(Path(tmp_path_factory.mktemp("adapter")), "openness")
    _, statistics, measured = run_elicit_and_measure(work_with(model, TOKENIZER), files, material, 1.0)
    return run_select("openness", statistics, measured, Selector("fitted"))


def steered(model: LlamaForCausalLM, trait: TraitRecord, spec: str, questions: list[str]) -> list[Answer]:
    """What the runtime has the model write."""
    adapter = PersonalityAdapter(work_with(model, TOKENIZER).base_model, {"openness": trait})
    with load_personality(model, spec, adapter):
        return generate_answers(model, TOKENIZER, [Prompt(question) for question in questions], DECODING)


def with_vectors(trait: TraitRecord, layers: list[int], of_high: np.ndarray, of_low: np.ndarray) -> TraitRecord:
    """The trait with other vectors behind layers, [layers, hidden] of each pole."""
    poles = {
        pole: replace(trait.poles[pole], gamma=1.0, residual=ResidualShift(np.array(layers, np.int16), vectors))
        for pole, vectors in ((Pole.HIGH, of_high), (Pole.LOW, of_low))
    }
    return replace(trait, poles=poles)


@pytest.fixture(scope="module")
def planted(selected: TraitRecord) -> TraitRecord:
    """A vector behind layer 1 that nothing found, opposite ones at the poles."""
    vector = np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32)
    return with_vectors(selected, [1], vector, -vector)


@pytest.fixture(scope="module")
def start(selected: TraitRecord) -> TraitRecord:
    """Vectors as large as what was planted, with nothing to do with it."""
    vectors = np.random.default_rng(7).normal(size=(2, 2, 32)).astype(np.float32)
    return with_vectors(selected, [0, 1], *vectors)


@pytest.fixture(scope="module")
def written(model: LlamaForCausalLM, planted: TraitRecord) -> list[Transcript]:
    """What the planted vectors had the model write at both poles, without a persona."""
    return [
        Transcript("openness", pole, question, "A persona that says nothing of it.", *vars(answer).values())
        for pole in Pole
        for question, answer in zip(QUESTIONS, steered(model, planted, f"openness{pole.sign}", QUESTIONS), strict=True)
    ]


@pytest.fixture(scope="module")
def fitted(model: LlamaForCausalLM, start: TraitRecord, written: list[Transcript]) -> TraitRecord:
    return fit_way(model, TOKENIZER, start, written)


def nll(model: LlamaForCausalLM, trait: TraitRecord | None, written: list[Transcript], pole: Pole) -> float:
    """Mean NLL of answers behind their questions, one answer at a time, by hooks of the test's own."""
    values = []
    for said in written:
        if said.pole is not pole:
            continue
        prompt = prompt_ids(Prompt(said.question), TOKENIZER)
        ids = torch.tensor([[*prompt, *said.token_ids]])
        hooks = []
        if trait is not None:
            residual = trait.poles[pole].residual
            assert residual is not None
            for layer, vector in zip(residual.layer.tolist(), residual.vector, strict=True):
                added = torch.zeros(1, ids.shape[1], len(vector))
                added[:, len(prompt) - 1 : -1] = torch.from_numpy(vector)
                hooks.append(
                    model.model.layers[layer].mlp.down_proj.register_forward_hook(
                        lambda _m, _a, out, add=added: out + add
                    )
                )
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        values += (-logits.gather(1, ids[0, len(prompt) :, None])).flatten().tolist()
    return float(np.mean(values))


@pytest.mark.parametrize("pole", Pole)
def test_the_answers_become_likely_without_their_persona(
    pole: Pole,
    model: LlamaForCausalLM,
    planted: TraitRecord,
    start: TraitRecord,
    written: list[Transcript],
    fitted: TraitRecord,
) -> None:
    """More than half of the way from the model as it is to the vector that had them written, from a start beyond it."""
    without, wanted, before, after = (nll(model, trait, written, pole) for trait in (None, planted, start, fitted))
    assert after < (without + wanted) / 2 < without < before
    swapped = replace(fitted, poles={each: fitted.poles[each.opposite] for each in Pole})
    assert nll(model, swapped, written, pole) > without


def test_nothing_of_the_model_changes(
    model: LlamaForCausalLM, start: TraitRecord, written: list[Transcript], fitted: TraitRecord
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    again = fit_way(model, TOKENIZER, start, written)
    for pole in Pole:
        assert again.poles[pole].residual == fitted.poles[pole].residual  # and the same inputs give the same bytes
        assert (again.poles[pole].gamma, again.poles[pole].positions) == (1.0, "last_prompt+generated")
        assert again.poles[pole].neurons == start.poles[pole].neurons
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_only_the_method_is_fitted_and_what_is_done_is_told(
    model: LlamaForCausalLM, start: TraitRecord, written: list[Transcript], fitted: TraitRecord
) -> None:
    poles = {
        pole: replace(record, method=replace(record.method, name="residual")) for pole, record in start.poles.items()
    }
    alone = replace(start, poles=poles)
    told: list[int] = []
    ways = fit_ways(model, TOKENIZER, [[alone], [start]], written, progress=told.append)
    assert ways == [[alone], [fitted]]
    assert sum(told) == most_fitted([[alone], [start]], len(written)) == EPOCHS * len(written)


def test_a_gradient_that_is_no_number_is_refused(start: TraitRecord, written: list[Transcript]) -> None:
    broken = tiny_chat_model(context=128)
    torch.nn.init.constant_(broken.lm_head.weight, torch.inf)
    with pytest.raises(NptiError, match="The gradient that vectors are fitted by is no finite number"):
        fit_way(broken, TOKENIZER, start, written)
    assert all(weight.requires_grad for weight in broken.parameters())
    assert not any(layer._forward_hooks for layer in broken.model.layers)


def test_it_is_tried_behind_several_layers_at_once_and_select_alone_refuses_it(tmp_path: Path) -> None:
    assert ways_to_try(Selector("fitted"), 32) == [[Selector("fitted")]]
    assert Selector("fitted", residual_layers=(3, 9)).residual_behind(32) == [3, 9]
    assert Selector("fitted").residual_behind(32) == [4, 12, 20, 28]
    assert Selector("fitted", layers=(8, 15)).residual_behind(32) == [9, 11, 13, 15]
    with pytest.raises(NptiError, match="The method fitted is found by running the model"):
        select_into(tmp_path, ["openness"], Selector("fitted"))


def test_smaller_batches_find_the_same_but_for_rounding(
    model: LlamaForCausalLM, start: TraitRecord, written: list[Transcript], fitted: TraitRecord
) -> None:
    in_threes = fit_way(model, TOKENIZER, start, written, batch_size=3)
    for pole, record in in_threes.poles.items():
        np.testing.assert_allclose(record.residual.vector, fitted.poles[pole].residual.vector, atol=1e-3)


def test_without_an_answer_there_is_nothing_to_fit_to(
    model: LlamaForCausalLM, start: TraitRecord, written: list[Transcript]
) -> None:
    one_token = [replace(said, token_ids=said.token_ids[:1]) for said in written]
    with pytest.raises(NptiError, match="There is no answer of two tokens or more at a pole"):
        fit_way(model, TOKENIZER, start, one_token)


class OneWay(torch.autograd.Function):
    """What quantised kernels without a backward do."""

    @staticmethod
    def forward(_context: object, values: torch.Tensor) -> torch.Tensor:
        return values.clone()


def test_a_model_without_a_gradient_is_refused_by_name(start: TraitRecord, written: list[Transcript]) -> None:
    model = tiny_chat_model(context=128)
    model.model.norm.register_forward_hook(lambda _module, _arguments, output: OneWay.apply(output))
    with pytest.raises(NptiError, match="Vectors are fitted by a gradient, and this model gives none"):
        fit_way(model, TOKENIZER, start, written)
    with pytest.raises(NptiError, match="this model gives none"):
        fit_ways(model, TOKENIZER, [[start]], written)
    by_mean = {p: replace(record, method=replace(record.method, name="residual")) for p, record in start.poles.items()}
    other = replace(start, poles=by_mean)
    said: list[str] = []
    assert fit_ways(model, TOKENIZER, [[other], [start]], written, warn=said.append) == [[other]]
    assert len(said) == 1
    assert said[0].startswith("openness: the method fitted is left out: Vectors are fitted by a gradient")
    assert all(weight.requires_grad for weight in model.parameters())


def test_what_is_moved_is_the_last_of_the_prompt_and_what_was_written_and_fed_again(written: list[Transcript]) -> None:
    said = written[0]
    prompt = prompt_ids(Prompt(said.question), TOKENIZER)
    row = behind_question(said, TOKENIZER, None)
    assert row.ids == [*prompt, *said.token_ids]
    assert row.counted == [False] * (len(prompt) - 1) + [True] * len(said.token_ids) + [False]
    for tokens in ((), said.token_ids[:1]):
        row = behind_question(replace(said, token_ids=tokens), TOKENIZER, None)
        assert row.ids == [*prompt, *tokens]
        assert not any(row.counted)


def test_thinking_is_not_moved(written: list[Transcript]) -> None:
    prompt = prompt_ids(Prompt(written[0].question), TOKENIZER)
    begin, end, *_ = (token for token in range(100) if token not in prompt)
    thinking = Thinking(begin, end)
    said = replace(written[0], token_ids=(begin, 9, 9, end, 7, 8, 3))
    row = behind_question(said, TOKENIZER, thinking)
    assert row.counted[-8:] == [True, False, False, False, True, True, True, False]
    assert not any(row.counted[:-8])
    assert not any(behind_question(said, TOKENIZER, thinking, first_token_too=False).counted[:-7])
    opened = Thinking(prompt[-1], end)
    assert not any(behind_question(said, TOKENIZER, opened).counted[:-4])
