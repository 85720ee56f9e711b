"""Statistics of neurons against plain NumPy on activations that hooks of the test saw in the very same forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from npti_export.errors import NptiError
from npti_export.identification import neuron_counter
from npti_export.identification.answers import Decoding, Prompt, prompt_ids
from npti_export.identification.elicit import Transcript, elicit, plan
from npti_export.identification.measure import measure, statistics_of
from npti_export.identification.neuron_counter import NeuronCounter, bin_numbers
from npti_export.identification.statistics import SUMS, NeuronStatistics, bin_edges
from npti_export.identification.stream import StreamCounter
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
LAYERS, WIDTH = 3, 48
QUESTIONS = [Question("openness", f"{what}?") for what in ("Art", "A long walk", "Tea", "Why not", "Who")]
PERSONAS = [Persona("openness", Pole.HIGH, "You dream."), Persona("openness", Pole.LOW, "You count.")]
BATCH = 4


@contextmanager
def seen_activations(model: LlamaForCausalLM) -> Iterator[list[tuple[NDArray[np.int64], NDArray[np.float32]]]]:
    """Every forward's ids [rows, tokens] and activations [rows, tokens, layers, width], as hooks of ours saw them."""
    forwards: list[Any] = []
    running: list[torch.Tensor] = []

    def after(_module: object, _arguments: object, keywords: dict[str, Any], _output: object) -> None:
        forwards.append((keywords["input_ids"].numpy().copy(), torch.stack(running, dim=2).numpy()))
        running.clear()

    def activated(_module: object, _arguments: object, output: torch.Tensor) -> None:
        running.append(output.clone())

    hooks = [model.register_forward_hook(after, with_kwargs=True)]
    hooks += [layer.mlp.act_fn.register_forward_hook(activated) for layer in model.model.layers]
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Its answers end at different places: a common letter is made an end sign."""
    model = tiny_chat_model()
    model.generation_config.eos_token_id = [1, *TOKENIZER.convert_tokens_to_ids(["#", "N", "p"])]
    return model


@pytest.fixture(scope="module")
def elicited(model: LlamaForCausalLM) -> tuple[list[Transcript], list[NDArray[np.float32]]]:
    """Transcripts, and the activations of each [tokens, layers, width] as they were while it was generated."""
    decoding = Decoding(max_new_tokens=24, repetition_penalty=1.1, batch_size=BATCH)
    transcripts, decoded = [], []
    for pair in plan(QUESTIONS, PERSONAS, seed=0):
        with seen_activations(model) as forwards:
            [transcript] = elicit(model, TOKENIZER, [pair], decoding=decoding)
        steps = [activations[0] for ids, activations in forwards if ids.shape[1] == 1]
        transcripts.append(transcript)
        decoded.append(np.concatenate(steps) if steps else np.zeros((0, LAYERS, WIDTH), np.float32))
    together = elicit(model, TOKENIZER, plan(QUESTIONS, PERSONAS, seed=0), decoding=decoding)
    assert together == transcripts
    return transcripts, decoded


def measured(
    model: LlamaForCausalLM, transcripts: list[Transcript]
) -> tuple[NeuronStatistics, list[NDArray[np.float32]]]:
    """The statistics, and what our hooks saw on the counted tokens of each transcript, [tokens, layers, width]."""
    with seen_activations(model) as forwards:
        sites = find_sites(model)
        forwards.clear()
        statistics = measure(model, TOKENIZER, sites, transcripts, BATCH)
    values = []
    for transcript in transcripts:
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona), TOKENIZER)
        fed = [*prompt, *transcript.token_ids[:-1]]
        rows = [
            activations[row]
            for ids, activations in forwards
            for row in range(len(ids))
            if ids[row, : len(fed)].tolist() == fed and not ids[row, len(fed) :].any()
        ]
        assert len(rows) == 1
        values.append(rows[0][len(prompt) : len(fed)])
    return statistics, values


def test_statistics_equal_plain_numpy(
    model: LlamaForCausalLM, elicited: tuple[list[Transcript], list[NDArray[np.float32]]]
) -> None:
    transcripts, _ = elicited
    assert len({len(transcript.token_ids) for transcript in transcripts}) > 2
    probability, target = {}, {}
    for pole in Pole:
        statistics, values = measured(model, [t for t in transcripts if t.pole is pole])
        flat = np.concatenate(values).reshape(-1, LAYERS * WIDTH)
        assert statistics.widths == (WIDTH,) * LAYERS
        counts = statistics.whole
        assert counts.tokens == len(flat) == sum(len(t.token_ids) - 1 for t in transcripts if t.pole is pole)
        np.testing.assert_array_equal(counts.active, (flat > 0).sum(0))
        np.testing.assert_array_equal(statistics.histogram.sum(1), len(flat))
        np.testing.assert_allclose(counts.mean, flat.astype(np.float64).mean(0), rtol=0, atol=2**-21)
        exact = np.percentile(flat, 95, axis=0, method="inverted_cdf")
        target[pole] = statistics.percentile(95.0)
        assert (np.abs(target[pole] - exact) <= np.maximum(0.01 * np.abs(exact), 0.005)).all()
        np.testing.assert_array_equal(target[pole] > 0, exact > 0)
        probability[pole] = (flat > 0).mean(0)
        np.testing.assert_array_equal(counts.probability, probability[pole])
        answers = [of_answer.reshape(-1, LAYERS * WIDTH) for of_answer in values if len(of_answer)]
        means = np.array([of_answer.astype(np.float64).mean(0) for of_answer in answers])
        mean, variance = counts.answer_moments()
        np.testing.assert_allclose(mean, means.mean(0), rtol=0, atol=2**-16)
        np.testing.assert_allclose(variance, means.var(0, ddof=1), rtol=1e-3, atol=1e-6)
        on = np.array([(of_answer > 0).sum(0) for of_answer in answers])
        lengths = np.array([len(of_answer) for of_answer in answers])
        assert (counts.answers, counts.token_squares) == (len(answers), (lengths**2).sum())
        np.testing.assert_array_equal(counts.active_squares, (on**2).sum(0))
        np.testing.assert_array_equal(counts.active_tokens, (on * lengths[:, None]).sum(0))
    assert np.abs(probability[Pole.HIGH] - probability[Pole.LOW]).max() > 0.1


def stream_of(model: LlamaForCausalLM, transcript: Transcript) -> NDArray[np.float64]:
    """The residual stream behind every layer on the answer's tokens, of one row without padding, [layers, hidden].

    As the model itself returns it; behind the last layer that is behind the norm, so there it is what the norm gets.
    """
    prompt = prompt_ids(Prompt(transcript.question, transcript.persona), TOKENIZER)
    last: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _module, given: last.append(given[0]))
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *transcript.token_ids[:-1]]])
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    hook.remove()
    streams = torch.stack([*states[1:-1], last[0]])[:, 0, len(prompt) :]
    return streams.double().sum(1).numpy()


def test_the_residual_stream_is_that_behind_every_layer(
    model: LlamaForCausalLM, elicited: tuple[list[Transcript], list[NDArray[np.float32]]]
) -> None:
    transcripts, _ = elicited
    means = {}
    for pole in Pole:
        of_pole = [t for t in transcripts if t.pole is pole]
        statistics = measure(model, TOKENIZER, find_sites(model), of_pole, BATCH)
        tokens = sum(len(t.token_ids) - 1 for t in of_pole)
        expected = sum(stream_of(model, transcript) for transcript in of_pole) / tokens
        assert statistics.stream is not None
        assert (statistics.stream.shape, statistics.stream.dtype) == ((LAYERS, 32), np.int64)
        means[pole] = statistics.stream_mean
        np.testing.assert_allclose(means[pole], expected, rtol=0, atol=1e-4)
    assert np.abs(means[Pole.HIGH] - means[Pole.LOW]).max() > 0.1


def test_a_layer_that_returns_no_single_stream_is_done_without() -> None:
    """As Gemma 3n's do, which return several at once."""
    counter = StreamCounter(1, lambda: torch.ones(2, 3, dtype=torch.bool))
    layer = torch.nn.Identity()
    hooks = counter.watch([layer])
    layer(torch.ones(2, 3, 5))
    assert counter.sums("layers").tolist() == [[6 * 2**20] * 5]
    layer(torch.full((2, 3, 5), 0.5))
    assert counter.sums("layers").tolist() == [[9 * 2**20] * 5]
    layer(torch.full((2, 3, 5), torch.inf))
    with pytest.raises(NptiError, match=r"^The residual stream behind layers\.0 holds 30 numbers that are not finite"):
        counter.sums("layers")
    layer(torch.ones(4, 2, 3, 5))
    assert counter.sums("layers") is None
    hooks[0].remove()
    assert StreamCounter(2, lambda: torch.ones(2, 3)).sums("layers") is None


def test_activations_are_those_of_decoding(
    model: LlamaForCausalLM, elicited: tuple[list[Transcript], list[NDArray[np.float32]]]
) -> None:
    """One forward over prompt and answer sees what token-by-token decoding with a cache saw."""
    transcripts, decoded = elicited
    _, forced = measured(model, transcripts)
    assert [len(values) for values in decoded] == [len(values) for values in forced]
    one, other = np.concatenate(decoded), np.concatenate(forced)
    assert one.size > 10_000
    assert ((one > 0) != (other > 0)).mean() < 0.001
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_an_end_sign_and_a_token_that_was_never_fed_do_not_count(model: LlamaForCausalLM) -> None:
    transcript = Transcript("openness", Pole.HIGH, "Tea?", "You dream.", "", (1,), True)
    counts = measure(model, TOKENIZER, find_sites(model), [transcript]).whole
    assert (counts.tokens, counts.answers, counts.active.sum()) == (0, 0, 0)
    longer = replace(transcript, token_ids=(20, 30, 1))
    cut = replace(transcript, token_ids=(20, 30, 40), finished=False)
    ended, broken_off = (measure(model, TOKENIZER, find_sites(model), [t, transcript]) for t in (longer, cut))
    assert (ended.whole.tokens, ended.whole.answers) == (2, 1)
    np.testing.assert_array_equal(ended.histogram, broken_off.histogram)


def test_batches_and_halves_add_up(
    model: LlamaForCausalLM, elicited: tuple[list[Transcript], list[NDArray[np.float32]]]
) -> None:
    transcripts, _ = elicited
    sites = find_sites(model)
    progress: list[int] = []
    hooks = [len(layer._forward_hooks) for layer in model.model.layers]  # transformers may leave its own
    whole = measure(model, TOKENIZER, sites, transcripts, 3, progress.append)
    assert progress == [3, 3, 3, 1]
    halves = [measure(model, TOKENIZER, sites, transcripts[start::2], 2, halves=[start] * 5) for start in (0, 1)]
    for half in (0, 1):
        assert whole.halves[half].tokens == halves[half].whole.tokens > 0
        assert halves[half].halves[1 - half].tokens == 0
    added = halves[0] + halves[1]
    assert (added.whole.tokens, added.whole.answers) == (whole.whole.tokens, whole.whole.answers)
    # Another batch gives other last bits, which may move a value over the edge of a bin, seldom more than one.
    assert np.abs(added.histogram - whole.histogram).sum() <= whole.histogram.sum() * 0.001
    np.testing.assert_allclose(added.whole.mean, whole.whole.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(added.stream_mean, whole.stream_mean, rtol=1e-4, atol=1e-4)
    assert [len(layer._forward_hooks) for layer in model.model.layers] == hooks
    assert not any(layer.mlp.act_fn._forward_hooks for layer in model.model.layers)


VALUES = st.one_of(
    st.floats(-0.25, 4.0, width=32),
    st.floats(1.0, 1e5, width=32),
    st.sampled_from([0.0, -0.0, 1e-40, 1e-6, -1e-6, 1 / 128, 1.0, 2.0, -0.5]),
).map(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st_numpy.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=VALUES),
    st.sampled_from([50.0, 90.0, 95.0, 99.0]),
)
def test_counts_and_percentiles_of_any_values(values: NDArray[np.float32], percentile: float) -> None:
    counter = NeuronCounter(3, torch.device("cpu"))
    counter.add(torch.from_numpy(values), torch.zeros(len(values), dtype=torch.int64), torch.tensor([1]))
    statistics = statistics_of([counter], [np.zeros(0, np.int64), np.array([len(values)])])
    exact = np.percentile(values, percentile, axis=0, method="inverted_cdf")
    found = statistics.percentile(percentile)
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= np.maximum(0.01 * np.abs(exact), 0.005)).all()
    np.testing.assert_array_equal(found > 0, exact > 0)
    np.testing.assert_array_equal(statistics.whole.probability, (values > 0).mean(0))
    np.testing.assert_array_equal(statistics.whole.above_zero(percentile), exact > 0)


def test_bin_numbers_are_those_that_a_search_finds() -> None:
    """At every edge, one float below and above it, over random values, and at all that is odd."""
    edges = bin_edges()
    odd = np.array([0.0, -0.0, 1e-40, -1e-40, -0.6, 1e30, -1e30, np.inf, -np.inf], np.float32)
    random = np.random.default_rng(0).normal(0, 1, 20_000)
    beside = [np.nextafter(edges, np.float32(to)) for to in (-np.inf, np.inf)]
    values = np.concatenate([edges, *beside, random, np.exp(3 * random), odd]).astype(np.float32)
    expected = np.searchsorted(edges, values, side="right")
    np.testing.assert_array_equal(bin_numbers(torch.from_numpy(values)).numpy(), expected)
    of_no_number = bin_numbers(torch.tensor([np.nan, -np.nan]))
    assert ((of_no_number >= 0) & (of_no_number <= len(edges))).all()


def test_bins_are_as_narrow_as_targets_need() -> None:
    edges = bin_edges().astype(np.float64)
    assert (np.diff(edges) > 0).all()
    half = np.diff(edges) / 2
    assert (half <= np.maximum(0.01 * edges[:-1], 0.005)).all()


def counted(values: torch.Tensor, row: torch.Tensor, half: torch.Tensor) -> NeuronStatistics:
    counter = NeuronCounter(values.shape[1], torch.device("cpu"))
    counter.add(values, row, half)
    assert not int(counter.not_finite)
    lengths = torch.bincount(row, minlength=len(half)).numpy()
    return statistics_of([counter], [lengths[half.numpy() == of] for of in (0, 1)])


def same(one: NeuronStatistics, other: NeuronStatistics) -> None:
    np.testing.assert_array_equal(one.histogram, other.histogram)
    for mine, theirs in zip(one.halves, other.halves, strict=True):
        for name in ("answers", "tokens", "token_squares", *SUMS):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_many_tokens_in_one_call_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    row, half = torch.arange(50) // 20, torch.tensor([0, 1, 0])
    at_once = counted(values, row, half)
    monkeypatch.setitem(neuron_counter.VALUES_AT_ONCE, "cpu", 7 * 4)
    statistics = counted(values, row, half)
    same(statistics, at_once)
    np.testing.assert_array_equal(statistics.histogram.sum(1), 50)
    expected = [np.histogram(column, np.r_[-np.inf, bin_edges(), np.inf])[0] for column in values.T.numpy()]
    np.testing.assert_array_equal(statistics.histogram, expected)


def test_parts_add_up_exactly_in_any_order() -> None:
    """Of 12 answers of 1 to 12 tokens, some very active: what one call counts is what 12 add up to, forth and back."""
    generator = torch.Generator().manual_seed(0)
    row = torch.repeat_interleave(torch.arange(12), torch.arange(1, 13))
    values = torch.randn(len(row), 5, generator=generator) * torch.tensor([1e-4, 1.0, 30.0, 900.0, 1e-7])
    half = torch.arange(12) % 2
    whole = counted(values, row, half)
    parts = [counted(values[row == at], torch.zeros(at + 1, dtype=torch.int64), half[at : at + 1]) for at in range(12)]
    for order in (range(12), range(11, -1, -1), np.random.default_rng(0).permutation(12)):
        added = parts[order[0]]
        for at in order[1:]:
            added = added + parts[at]
        same(added, whole)


def test_an_activation_that_is_no_number_is_an_error(model: LlamaForCausalLM) -> None:
    sites = find_sites(model)
    transcript = Transcript("openness", Pole.HIGH, "Tea?", "You dream.", "", (20, 30, 1), True)

    def spoil(_module: object, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([5]), float("nan"))

    hook = model.model.layers[1].mlp.act_fn.register_forward_hook(spoil)
    try:
        with pytest.raises(NptiError, match=r"^model\.layers\.1\.mlp\.act_fn gave 2 activations that are no finite"):
            measure(model, TOKENIZER, sites, [transcript])
    finally:
        hook.remove()
    assert not any(layer.mlp.act_fn._forward_hooks for layer in model.model.layers)
