"""What neurons stand for: words by the logit lens, passages where they fire, against forwards written out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import PoleRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.identification.answers import Prompt, prompt_ids
from npti_export.identification.elicit import Transcript, write_transcripts
from npti_export.identification.explanation import PASSAGES, NeuronExplanation, explain_neurons, explain_pole, words_of
from npti_export.identification.files import TraitFiles
from npti_export.identification.measure import measure
from npti_export.identification.statistics_file import write_statistics
from npti_export.steering.lens import Lens, output_directions
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import Pole
from tests.chat_models import tiny_chat_mixture, tiny_chat_model, tiny_tokenizer
from tests.mixtures import MIXTURES
from tests.tiny_models import tiny

TOKENIZER = tiny_tokenizer()


def transcripts() -> list[Transcript]:
    texts = ["I like it here", "No, thank you", "Come in and sit down", "Leave me be"]
    return [
        Transcript(
            "openness",
            Pole.HIGH if number % 2 else Pole.LOW,
            f"Question {number}?",
            "You are someone.",
            text,
            tuple(TOKENIZER.encode(text, add_special_tokens=False)),
            True,
        )
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "OPT", "Phi3"])
def test_a_neuron_of_the_last_layer_moved_far_moves_the_logits_as_the_lens_reads_it(family: str) -> None:
    model = tiny(family)
    site = find_sites(model)[-1]
    read = Lens.of(model).read(output_directions(site, torch.tensor([5])))[0]

    def push(_module: nn.Module, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        output[..., 5] += 1e7
        return output

    hook = site.activation.register_forward_hook(push)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1]
    hook.remove()
    correlation = torch.corrcoef(torch.stack([read, logits]))[0, 1]
    assert abs(float(correlation)) > 0.999  # a gated neuron's sign is that of its up projection


def test_directions_are_what_the_block_adds_for_each_neuron() -> None:
    model = tiny("Llama")
    site = find_sites(model)[1]
    down: nn.Linear = model.model.layers[1].mlp.down_proj
    one_hot = torch.zeros(2, 48)
    one_hot[0, 7] = one_hot[1, 30] = 1.0
    with torch.no_grad():
        expected = down(one_hot)
    assert torch.allclose(output_directions(site, torch.tensor([7, 30])), expected)


def test_words_are_those_of_largest_and_smallest_logit() -> None:
    model = tiny_chat_model()
    lens = Lens.of(model)
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    logits = lens.read(direction)[0, : len(TOKENIZER)]
    (words,) = words_of(lens, TOKENIZER, direction)
    assert words.promotes[0] == TOKENIZER.decode([int(logits.argmax())])
    assert words.suppresses[0] == TOKENIZER.decode([int(logits.argmin())])
    assert words.turned().turned() == words


def test_passages_are_where_the_neuron_fires_most_on_tokens_of_answers() -> None:
    model = tiny_chat_model()
    given = transcripts()
    (words, gives, passages) = explain_neurons(model, TOKENIZER, find_sites(model), [(1, 9)], given, batch_size=3)[0]
    peaks, total, tokens = [], 0.0, 0
    for transcript in given:
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona), TOKENIZER)
        ids = torch.tensor([[*prompt, *transcript.token_ids[:-1]]])
        mlp = model.model.layers[1].mlp
        with torch.no_grad():
            kept: list[torch.Tensor] = []
            hook = mlp.register_forward_pre_hook(lambda _module, arguments, kept=kept: kept.append(arguments[0]))
            model(input_ids=ids)
            hook.remove()
            gate = mlp.act_fn(mlp.gate_proj(kept[0]))[0, len(prompt) :, 9]
            up = mlp.up_proj(kept[0])[0, len(prompt) :, 9]
        peaks.append((float(gate.max()), TOKENIZER.decode([transcript.token_ids[int(gate.argmax())]]), transcript.pole))
        total, tokens = total + float((gate.double() * up.double()).sum()), tokens + len(gate)
    peaks = sorted(peaks, reverse=True)[:PASSAGES]
    assert [(pytest.approx(value, abs=1e-6), token, pole) for value, token, pole in peaks] == [
        (passage.activation, passage.token, passage.pole) for passage in passages
    ]
    assert gives == pytest.approx(total / tokens, rel=1e-4)
    (bare, none, nowhere) = explain_neurons(model, TOKENIZER, find_sites(model), [(1, 9)], [])[0]
    assert (none, nowhere) == (None, ())
    assert words == (bare if gives >= 0 else bare.turned())


def test_a_neuron_that_is_not_there_is_refused() -> None:
    model = tiny_chat_model()
    with pytest.raises(NptiError, match=r"no dense neuron 7:2"):
        explain_neurons(model, TOKENIZER, find_sites(model), [(7, 2)], [])


def test_a_pole_is_explained_by_its_largest_deltas_and_its_vectors(tmp_path: Path) -> None:
    model = tiny_chat_model()
    delta = np.array([0.2, -0.5, 0.3], np.float32)
    three = np.ones(3, np.float32)
    layers, indices = np.array([0, 0, 1], np.int16), np.array([3, 8, 1], np.int32)
    record = PoleRecord(
        NeuronSet(layers, indices, three, three, delta),
        1.0,
        residual=ResidualShift(np.array([1], np.int16), np.ones((1, 32), np.float32)),
    )
    files = TraitFiles(tmp_path, "openness")
    found = explain_pole(model, TOKENIZER, find_sites(model), record, Pole.HIGH, files, 2)
    assert [(neuron.layer, neuron.index, neuron.margin) for neuron in found.neurons] == [(0, 8, None), (1, 1, None)]
    assert [neuron.delta for neuron in found.neurons] == pytest.approx([-0.5, 0.3])
    assert found.chosen == 3
    assert [vector.layer for vector in found.vectors] == [1]
    assert found.vectors[0].words == words_of(Lens.of(model), TOKENIZER, torch.ones(1, 32))[0]


def test_delta_and_its_interval_are_those_of_the_statistics(tmp_path: Path) -> None:
    """By hand from the activations: a share of tokens at either pole, and how it varies over answers."""
    model = tiny_chat_model()
    sites = find_sites(model)
    files = TraitFiles(tmp_path, "openness")
    write_transcripts(files.transcripts, transcripts())
    for pole in Pole:
        of_pole = [transcript for transcript in transcripts() if transcript.pole is pole]
        counted = measure(model, TOKENIZER, sites, of_pole)
        write_statistics(files.statistics(pole), counted, describe_base_model(model, sites), "openness", pole)
    chosen = np.ones(1, np.float32)
    record = PoleRecord(NeuronSet(np.array([0], np.int16), np.array([3], np.int32), chosen, chosen, 0.25 * chosen), 1.0)
    found = explain_pole(model, TOKENIZER, sites, record, Pole.LOW, files, [(1, 9), (0, 3)])
    for neuron in found.neurons:
        shares, variances = {}, {}
        for pole in Pole:
            on, of = np.array(
                [fires(model, transcript, neuron) for transcript in transcripts() if transcript.pole is pole]
            ).T
            shares[pole] = on.sum() / of.sum()
            variances[pole] = len(on) / (len(on) - 1) * ((on - shares[pole] * of) ** 2).sum() / of.sum() ** 2
        assert neuron.delta == pytest.approx(shares[Pole.LOW] - shares[Pole.HIGH], abs=1e-6)
        assert neuron.margin == pytest.approx(1.96 * np.sqrt(sum(variances.values())), rel=1e-4)

    other = find_sites(tiny("Llama"))
    with pytest.raises(NptiError, match="is of a model of other layers than this one; measure again"):
        explain_pole(tiny("Llama"), TOKENIZER, other, record, Pole.LOW, files, [(1, 9)])


def fires(model: nn.Module, transcript: Transcript, neuron: NeuronExplanation) -> tuple[int, int]:
    """On how many of an answer's tokens a neuron is above 0, and of how many."""
    prompt = prompt_ids(Prompt(transcript.question, transcript.persona), TOKENIZER)
    seen: list[torch.Tensor] = []
    hook = model.model.layers[neuron.layer].mlp.act_fn.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        model(input_ids=torch.tensor([[*prompt, *transcript.token_ids[:-1]]]))
    hook.remove()
    values = seen[0][0, len(prompt) :, neuron.index]
    return int((values > 0).sum()), len(values)


def test_an_experts_neuron_does_not_lend_its_delta_to_one_of_the_same_number() -> None:
    """In a layer with a shared expert both are numbered from 0; only the shared one's can be put into words."""
    model = tiny_chat_mixture("Qwen2Moe", **{mixture.name: mixture for mixture in MIXTURES}["Qwen2Moe"].sizes)
    sites = find_sites(model)
    layer = next(site.layer for site in sites if site.experts is not None)
    three = np.ones(3, np.float32)
    neurons = NeuronSet(
        np.full(3, layer, np.int16),
        np.array([2, 2, 5], np.int32),
        three,
        three,
        np.array([0.1, 0.9, 0.3], np.float32),
        expert=np.array([-1, 0, 1], np.int16),
    )
    found = explain_pole(
        model, TOKENIZER, sites, PoleRecord(neurons, 1.0), Pole.HIGH, TraitFiles(Path("none"), "wit"), 9
    )
    assert [(neuron.layer, neuron.index, neuron.delta) for neuron in found.neurons] == [(layer, 2, pytest.approx(0.1))]
    assert found.chosen == 3
