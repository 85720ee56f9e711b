"""Statistics of experts, over the tokens that were routed to them, against plain NumPy on what the tests' experts saw.

These run one after the other and write down, token by token, who got which and what its activation was.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_mixture, tiny_tokenizer
from mixtures import MIXTURES
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from npti_export import load_personality
from npti_export.adapter.base_model import LayerNeurons
from npti_export.identification.answers import Prompt, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.identification.files import TraitFiles
from npti_export.identification.measure import measure
from npti_export.identification.measurement import read_measurement
from npti_export.identification.questions import Material
from npti_export.identification.reliability import delta_margin, reliability
from npti_export.identification.select import contrast_of, select
from npti_export.identification.selection import select_into
from npti_export.identification.selector import Selector
from npti_export.identification.stages import run_elicit_and_measure
from npti_export.identification.statistics import (
    EXPERT_TOTALS,
    MIN_EXPERT_TOKENS,
    SUMS,
    ExpertTotals,
    NeuronCounts,
    NeuronStatistics,
    bin_edges,
    considered,
    left_out,
)
from npti_export.identification.statistics_file import read_statistics, write_statistics
from npti_export.pipeline import warn_of_answers, work_with
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
OF = {mixture.name: mixture for mixture in MIXTURES}
WAYS = [("Mixtral", "grouped_mm"), ("GptOss", "batched_mm"), ("Llama4Text", "eager")]
SLOW_WAYS = [("Mixtral", "eager"), ("Mixtral", "batched_mm"), ("DeepseekV3", "grouped_mm"), ("Qwen2Moe", "batched_mm")]
BATCH = 3


def transcripts_of(pole: Pole, count: int = 7) -> list[Transcript]:
    """Random answers; measuring only feeds them, so anybody may have written them."""
    rng = np.random.default_rng(pole is Pole.HIGH)
    return [
        Transcript(
            trait="openness",
            pole=pole,
            question=f"What {at}?",
            persona="You dream." if pole is Pole.HIGH else "You count.",
            answer="",
            token_ids=tuple(int(number) for number in rng.integers(6, 90, size=int(rng.integers(2, 30)))),
            finished=False,
        )
        for at in range(count)
    ]


def model_of(name: str, way: str) -> PreTrainedModel:
    model = tiny_chat_mixture(name, **OF[name].sizes)
    if len(OF[name].implementations) > 1:
        model.set_experts_implementation(way)
    return model


def seen_by(model: PreTrainedModel, name: str, ids: list[int]) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Activations [tokens that it got, width] by (layer, expert), and the place of each token in column 0."""
    seen: dict[tuple[int, int], list[NDArray[np.float32]]] = defaultdict(list)

    def note(layer: int, expert: int, token: int, activation: Tensor) -> None:
        seen[layer, expert].append(np.concatenate([[token], activation.numpy()]).astype(np.float32))

    def routed(self: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        for token, experts in enumerate(chosen.tolist()):
            for place, e in enumerate(experts):
                if name == "GptOss":
                    both = hidden[token] @ self.gate_up_proj[e] + self.gate_up_proj_bias[e]
                    gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0) + 1
                    activation = gate * torch.sigmoid(1.702 * gate)
                    out = (up * activation) @ self.down_proj[e] + self.down_proj_bias[e]
                else:
                    gate, up = (self.gate_up_proj[e] @ hidden[token]).chunk(2)
                    activation = self.act_fn(gate)
                    out = self.down_proj[e] @ (activation * up)
                note(layers[self], e, token, activation)
                result[token] += weights[token, place] * out
        return result

    def on_all(self: nn.Module, hidden: Tensor) -> Tensor:
        given = hidden.view(len(self.gate_up_proj), -1, hidden.shape[-1])
        gate, up = torch.bmm(given, self.gate_up_proj).chunk(2, dim=-1)
        activation = self.act_fn(gate)
        scores, _ = router_said[layers[self]]
        for token, score in enumerate(scores):
            for e in torch.nonzero(score).flatten().tolist():
                note(layers[self], e, token, activation[e, token])
        return torch.bmm(up * activation, self.down_proj).view(-1, hidden.shape[-1])

    layers = {model.get_submodule(OF[name].experts.replace("N", str(at))): at for at in OF[name].layers}
    router_said: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = []
    for experts, layer in layers.items():
        vars(experts)["forward"] = MethodType(on_all if name == "Llama4Text" else routed, experts)
        beside = OF[name].beside
        if beside:
            shared = model.get_submodule(beside.replace("N", str(layer)))
            hooks.append(
                shared.register_forward_hook(
                    lambda _m, _g, out, layer=layer: (
                        [note(layer, -1, token, of) for token, of in enumerate(out.reshape(-1, out.shape[-1]))] and None
                    )
                )
            )
        if name == "Llama4Text":
            router = model.model.layers[layer].feed_forward.router
            hooks.append(
                router.register_forward_hook(lambda _m, _g, out, layer=layer: router_said.update({layer: out}))
            )
    for layer in {0, 1} - set(OF[name].layers):
        dense = model.get_submodule(str(OF[name].dense).replace("N", str(layer)))
        hooks.append(
            dense.register_forward_hook(
                lambda _m, _g, out, layer=layer: (
                    [note(layer, -1, token, of) for token, of in enumerate(out[0])] and None
                )
            )
        )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    for experts in layers:
        del vars(experts)["forward"]
    return {place: np.stack(rows) for place, rows in seen.items()}


@pytest.mark.parametrize(("name", "way"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW_WAYS)])
def test_counts_are_those_of_the_tokens_routed_to_each_expert(name: str, way: str) -> None:
    model = model_of(name, way)
    transcripts = transcripts_of(Pole.HIGH)
    statistics = measure(model, TOKENIZER, find_sites(model), transcripts, BATCH)
    layers = statistics.layers
    assert layers == describe_base_model(model, find_sites(model)).neurons_per_layer
    of_answers: list[dict[tuple[int, int], NDArray[np.float32]]] = []
    for transcript in transcripts:
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona), TOKENIZER)
        seen = seen_by(model, name, [*prompt, *transcript.token_ids[:-1]])
        of_answers.append({at: rows[rows[:, 0] >= len(prompt), 1:] for at, rows in seen.items()})
    whole, first, total = statistics.whole, 0, 0
    experts = whole.experts
    assert experts is not None
    totals = dict(zip(experts.numbers(), range(len(experts.tokens)), strict=True))
    for layer, of_layer in enumerate(layers):
        beside = of_layer.dense + of_layer.shared
        for expert in range(-1 if beside else 0, of_layer.experts):
            width = beside if expert < 0 else of_layer.per_expert
            rows = [answer.get((layer, expert), np.zeros((0, width), np.float32)) for answer in of_answers]
            met = [values for values in rows if len(values)]
            values = np.concatenate([np.zeros((0, width), np.float32), *rows])
            here = slice(first, first + width)
            # Experts run in another order add up in another order: signs of what is next to 0 may differ.
            near = int((np.abs(values) < 1e-5).sum())
            assert np.abs(whole.active[here] - (values > 0).sum(0)).max() <= near
            np.testing.assert_allclose(whole.total[here] / 2**20, values.sum(0), atol=1e-3)
            if expert >= 0:
                at = totals[layer, expert]
                lengths = np.array([len(values) for values in met])
                found = [int(getattr(experts, of)[at]) for of in EXPERT_TOTALS]
                assert found == [len(met), lengths.sum(), (lengths**2).sum()]
                total += len(values)
            if len(met):
                np.testing.assert_allclose(
                    whole.probability[here], (values > 0).mean(0), atol=near / len(values) + 1e-9
                )
                np.testing.assert_allclose(whole.mean[here], values.mean(0), atol=1e-4)
                means = np.stack([values.mean(0) for values in met])
                mean, variance = whole.answer_moments()
                np.testing.assert_allclose(mean[here], means.mean(0), atol=1e-4)
                if len(met) > 1:
                    np.testing.assert_allclose(variance[here], means.var(0, ddof=1), atol=1e-3)
                exact = np.percentile(values, 95, axis=0, method="inverted_cdf")
                error = np.maximum(0.005, 0.01 * np.abs(exact)) + 1e-4
                assert (np.abs(statistics.percentile(95.0)[here] - exact) <= error)[exact > -0.5].all()
            first += width
    assert first == len(whole.active)
    assert total == experts.tokens.sum() > 0
    k = 1 if name == "Llama4Text" else 2
    assert experts.tokens.sum() == whole.tokens * k * len(OF[name].layers)
    assert not model.training
    assert all("forward" not in vars(module) for module in model.modules())


def test_ways_of_running_and_parts_give_the_same_statistics() -> None:
    transcripts = transcripts_of(Pole.LOW)
    found = []
    for way in ("eager", "grouped_mm", "batched_mm"):
        model = model_of("Mixtral", way)
        sites = find_sites(model)
        found.append(measure(model, TOKENIZER, sites, transcripts, BATCH))
        # Halves as they are in the whole: every other answer, counted by themselves.
        parts = [measure(model, TOKENIZER, sites, transcripts[at : at + 1], 1, halves=[at % 2]) for at in range(7)]
        added = sum(parts[1:], parts[0])
        assert added.whole.experts is not None
        assert added.whole.experts.tokens.tolist() == found[-1].whole.experts.tokens.tolist()
    for other in found[1:]:
        for mine, theirs in zip(found[0].halves, other.halves, strict=True):
            for name in EXPERT_TOTALS:
                np.testing.assert_array_equal(getattr(mine.experts, name), getattr(theirs.experts, name))
            assert (np.abs(mine.active - theirs.active) <= 2).all()
            np.testing.assert_allclose(mine.mean, theirs.mean, atol=1e-4)


def test_file_read_back_is_what_was_written(tmp_path: Path) -> None:
    model = model_of("DeepseekV3", "grouped_mm")
    base_model = describe_base_model(model, find_sites(model))
    written = measure(model, TOKENIZER, find_sites(model), transcripts_of(Pole.HIGH), BATCH)
    path = tmp_path / "openness_high.safetensors"
    write_statistics(path, written, base_model, "openness", Pole.HIGH)
    read, of = read_statistics(path, "openness", Pole.HIGH)
    assert of == base_model
    np.testing.assert_array_equal(read.histogram, written.histogram)
    for mine, theirs in zip(read.halves, written.halves, strict=True):
        assert mine.experts is not None
        assert theirs.experts is not None
        assert mine.experts.layers == theirs.experts.layers
        for name in SUMS:
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        for name in EXPERT_TOTALS:
            np.testing.assert_array_equal(getattr(mine.experts, name), getattr(theirs.experts, name))


LAYERS = (LayerNeurons(2), LayerNeurons(0, 3, 2, 1))
"""Nine neurons: two dense, one shared, and two of each of three experts."""


def counted(active: list[int], tokens: int, of_experts: list[int]) -> NeuronStatistics:
    """Statistics in which the routed experts got so many tokens, active ones at 0.5, the others at −0.1."""
    nothing = np.zeros(9, np.int64)
    lengths = [np.array(of, np.int64) for of in ([2, 2, 2], of_experts, [of * of // 2 for of in of_experts])]
    experts = ExpertTotals(LAYERS, *lengths)
    none = ExpertTotals(LAYERS, *(0 * of for of in lengths))
    own = experts.of_neurons("tokens", tokens)
    edges = bin_edges()
    histogram = np.zeros((9, len(edges) + 1), np.int32)
    histogram[np.arange(9), np.searchsorted(edges, 0.5, side="right")] = active
    histogram[np.arange(9), np.searchsorted(edges, -0.1, side="right")] = own - np.array(active)
    means = np.array(active) * 2**14
    sums = (np.array(active), np.array(active) ** 2 // 2, np.array(active) * own // 2, nothing, means, means**2)
    halves = (
        NeuronCounts(2, tokens, tokens**2 // 2, *sums, experts=experts),
        NeuronCounts(0, 0, 0, *[nothing] * 6, experts=none),
    )
    return NeuronStatistics((2, 7), halves, histogram)


def test_experts_with_too_few_tokens_are_left_out_and_listed() -> None:
    few = MIN_EXPERT_TOKENS - 1
    high = counted([600, 10, 700, 300, 10, 190, 0, 150, 0], 1000, [400, 200, few])
    low = counted([100, 10, 700, 10, 10, 0, 0, 0, 0], 1000, [500, 199, 900])
    assert left_out(high.whole, low.whole) == [(1, 1), (1, 2)]
    assert considered(high.whole, low.whole).tolist() == [True] * 5 + [False] * 4
    contrast = contrast_of(high, low, 95.0)
    np.testing.assert_allclose(contrast.delta, [0.5, 0, 0, 0.75 - 0.02, 0.025 - 0.02, 0, 0, 0, 0], atol=1e-6)
    for numbers in (contrast.target, contrast.mean_difference, contrast.effect_size):
        assert not numbers[5:].any()
    record = select(contrast, Selector())
    neurons = record.neurons
    assert neurons.expert is not None
    assert list(zip(neurons.layer, neurons.expert, neurons.index, strict=True)) == [(0, -1, 0), (1, 0, 0)]
    assert np.isfinite(reliability({Pole.HIGH: high, Pole.LOW: low}, Selector(), 2).split_half)


def test_the_interval_is_over_the_answers_that_an_expert_had() -> None:
    """An expert that no answer reached has no interval; dense neurons beside it have theirs."""
    high, low = (counted([6, 2, 7, 3, 1, 0, 0, 0, 0], 10, [4, 2, 0]) for _ in range(2))
    experts = high.halves[0].experts
    assert experts is not None
    reached = ExpertTotals(LAYERS, np.array([2, 1, 0]), experts.tokens, experts.token_squares)
    counts = NeuronCounts(2, 10, 50, *(getattr(high.halves[0], name) for name in SUMS), experts=reached)
    margin = delta_margin(counts, low.whole)
    assert np.isfinite(margin[:5]).all()
    assert np.isinf(margin[5:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mixtral", "Llama4Text"])
def test_identified_steered_and_restored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npti_export.identification.statistics.MIN_EXPERT_TOKENS", 40)
    model = model_of(name, "grouped_mm")
    questions = [Question("openness", f"What {at}?") for at in range(50)]
    personas = [Persona("openness", Pole.HIGH, "You dream of art."), Persona("openness", Pole.LOW, "You count.")]
    material = Material.of(questions, personas, 8, 0)
    work = work_with(model, TOKENIZER, 16)
    work = replace(work, decoding=replace(work.decoding, max_new_tokens=24))
    files = TraitFiles(tmp_path, "openness")
    _, statistics, measured = run_elicit_and_measure(work, files, material)
    adapter = select_into(tmp_path, ["openness"], Selector())
    neurons = adapter.traits["openness"].poles[Pole.HIGH].neurons
    assert neurons.expert is not None
    assert (neurons.expert >= 0).any()
    few = left_out(statistics[Pole.HIGH].whole, statistics[Pole.LOW].whole)
    assert [tuple(place) for place in read_measurement(files.measurement).experts_left_out] == few
    assert not set(few) & set(zip(neurons.layer.tolist(), neurons.expert.tolist(), strict=True))
    said: list[str] = []
    warn_of_answers("openness", 1.0, measured, said.append)
    assert any("left out (layer:expert" in message for message in said) == bool(few)
    ids = torch.tensor([[10, 20, 30, 40]])
    plain = model(input_ids=ids).logits
    with load_personality(model, "openness+", tmp_path, positions="all"):
        assert not torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)
