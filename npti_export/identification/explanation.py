"""What the chosen neurons stand for: the words that they write, and the passages of the answers where they fire most.

The words come from the logit lens on a neuron's output direction. A gated neuron's activation is multiplied by the up
projection, which may be negative: so what it gave on average, where the answers are at hand, decides which words are
promoted and which suppressed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.records import PoleRecord
from npti_export.errors import NptiError
from npti_export.identification.answers import Progress
from npti_export.identification.elicit import Transcript, check_tokens, read_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.identification.measure import Row, pad_rows
from npti_export.identification.reliability import delta_margin
from npti_export.identification.select import delta_of
from npti_export.identification.statistics_file import read_statistics
from npti_export.steering.lens import Lens, narrow_map, output_directions
from npti_export.steering.sites import Site, neurons_per_layer
from npti_export.steering.thinking import Thinking
from npti_export.traits import Pole

WORDS = 8
"""So many words are shown that a direction promotes, and as many that it suppresses."""
PASSAGES = 3
AROUND = 8
"""So many tokens of an answer are shown before the one on which a neuron fires, and as many behind it."""


@dataclass(frozen=True)
class Words:
    """What a direction says through the last norm and the head.

    Args:
        promotes: Tokens whose logits it raises most, the first one most.
        suppresses: Tokens whose logits it lowers most.
    """

    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]

    def turned(self) -> Words:
        """The words of the opposite direction."""
        return Words(self.suppresses, self.promotes)


@dataclass(frozen=True)
class Passage:
    """A place in an answer where a neuron fires, the most in that answer.

    Args:
        pole: The pole that the answer was given at.
        before: Text before the token.
        token: The token that the model had read.
        after: Text behind it.
        activation: The neuron's value there.
    """

    pole: Pole
    before: str
    token: str
    after: str
    activation: float


@dataclass(frozen=True)
class NeuronExplanation:
    """What one neuron stands for.

    Args:
        layer: Its decoder layer.
        index: Its number within the layer.
        delta: Probability under the pole minus under the opposite one; None where it is not known.
        margin: Half the width of delta's 95 % interval; None where there are no statistics.
        words: What it says where it fires; of its bare direction where there are no answers.
        gives: What it gives to the map back per token, on average over all answers; None without answers.
        passages: Where it fires most, in different answers.
    """

    layer: int
    index: int
    delta: float | None
    margin: float | None
    words: Words
    gives: float | None
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class VectorExplanation:
    """What a vector that is added to the residual stream says.

    Args:
        layer: The layer behind which it is added.
        words: What it promotes and suppresses.
    """

    layer: int
    words: Words


@dataclass(frozen=True)
class ExplainedPole:
    """What the steering towards one pole stands for.

    Args:
        chosen: How many neurons were chosen for the pole.
        neurons: Those that were asked for, or those of largest delta.
        vectors: Of the methods ``residual`` and ``hybrid``.
    """

    chosen: int
    neurons: tuple[NeuronExplanation, ...]
    vectors: tuple[VectorExplanation, ...]


def explain_pole(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    record: PoleRecord,
    pole: Pole,
    files: TraitFiles,
    wanted: Sequence[tuple[int, int]] | int,
    batch_size: int = 32,
) -> ExplainedPole:
    """Explains one pole of an adapter, with what identification left beside it.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        record: The steering towards the pole.
        pole: Which pole.
        files: Transcripts and statistics; what is not there is left out.
        wanted: Layer and index of each neuron to explain, or how many of those with the largest delta.
        batch_size: Rows of one forward.

    Raises:
        NptiError: If a neuron is not in the model or is an expert's, a file is broken, or the map back cannot be read.
    """
    own = record.neurons
    order = np.argsort(-np.abs(own.delta), kind="stable").tolist()
    dense = [at for at in order if own.expert is None or own.expert[at] < 0]  # an expert numbers its own from 0 again
    deltas = {(int(own.layer[at]), int(own.index[at])): float(own.delta[at]) for at in dense}
    if isinstance(wanted, int):
        wanted = list(deltas)[:wanted]
    measured = _measured(files, pole, sites)
    transcripts = read_transcripts(files.transcripts)
    check_tokens(files.transcripts, transcripts, model, tokenizer)
    explained = explain_neurons(model, tokenizer, sites, list(wanted), transcripts, batch_size)
    neurons = []
    for place, (words, gives, passages) in zip(wanted, explained, strict=True):
        delta, margin = measured(*place) if measured else (deltas.get(place), None)
        neurons.append(NeuronExplanation(*place, delta, margin, words, gives, passages))
    vectors: list[VectorExplanation] = []
    if record.residual is not None:
        words_of_vectors = words_of(Lens.of(model), tokenizer, torch.from_numpy(record.residual.vector))
        layers = record.residual.layer.tolist()
        vectors = [VectorExplanation(*pair) for pair in zip(layers, words_of_vectors, strict=True)]
    return ExplainedPole(len(own), tuple(neurons), tuple(vectors))


def _measured(
    files: TraitFiles, pole: Pole, sites: Sequence[Site]
) -> Callable[[int, int], tuple[float, float | None]] | None:
    """Delta of any neuron and half its interval from the statistics of both poles; None where there are none."""
    if not all(files.statistics(side).exists() for side in Pole):
        return None
    own, opposite = (read_statistics(files.statistics(side), files.trait, side)[0] for side in (pole, pole.opposite))
    if own.layers != neurons_per_layer(sites):
        raise NptiError(f"{files.statistics(pole)} is of a model of other layers than this one; measure again.")
    delta, margin = delta_of(own.whole, opposite.whole), delta_margin(own.whole, opposite.whole)
    begins = np.cumsum([0, *(site.neurons for site in sites)])
    of_layer = {site.layer: int(begin) for site, begin in zip(sites, begins, strict=False) if site.experts is None}

    def look_up(layer: int, index: int) -> tuple[float, float | None]:
        at = of_layer[layer] + index
        return float(delta[at]), float(margin[at]) if np.isfinite(margin[at]) else None

    return look_up


def words_of(lens: Lens, tokenizer: PreTrainedTokenizerBase, directions: Tensor) -> list[Words]:
    """The words of directions in the residual stream.

    Args:
        lens: Last norm and head of the model.
        tokenizer: Its tokenizer.
        directions: float32 [n, hidden].
    """
    logits = lens.read(directions)
    known = min(logits.shape[-1], len(tokenizer))  # a head may be padded to a round size

    def spelled(numbers: Tensor) -> tuple[str, ...]:
        return tuple(str(tokenizer.decode([number])) for number in numbers.tolist())

    logits = logits[:, :known]
    most, least = (logits.topk(min(WORDS, known), largest=largest).indices for largest in (True, False))
    return [Words(spelled(up), spelled(down)) for up, down in zip(most, least, strict=True)]


def explain_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    neurons: Sequence[tuple[int, int]],
    transcripts: Sequence[Transcript],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[tuple[Words, float | None, tuple[Passage, ...]]]:
    """Puts neurons into words and finds the passages of answers where they fire most.

    Args:
        model: The model that gave the answers, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        neurons: Layer and index of each.
        transcripts: Answers of both poles; without any there are words of the bare directions alone.
        batch_size: Rows of one forward.
        progress: Told how many more transcripts are done.

    Returns:
        For each neuron, in their order, its words, what it gives on average, and its passages.

    Raises:
        NptiError: If a neuron is not in the model or is an expert's, or the map back cannot be read.
    """
    dense = {site.layer: site for site in sites if site.experts is None}
    for layer, index in neurons:
        if layer not in dense or not 0 <= index < dense[layer].neurons:
            widths = sorted({site.neurons for site in dense.values()})
            raise NptiError(
                f"There is no dense neuron {layer}:{index}; {type(model).__name__} has the layers 0 to "
                f"{max(dense, default=-1)} of {' or '.join(map(str, widths))} neurons."
            )
    lens = Lens.of(model)
    columns = [output_directions(dense[layer], torch.tensor([index])) for layer, index in neurons]
    words = words_of(lens, tokenizer, torch.cat(columns)) if columns else []
    if not transcripts:
        return [(of_neuron, None, ()) for of_neuron in words]
    fired = _fired(model, tokenizer, dense, neurons, transcripts, batch_size, progress)
    return [
        (of_neuron if gives >= 0 else of_neuron.turned(), gives, passages)
        for of_neuron, (gives, passages) in zip(words, fired, strict=True)
    ]


def _fired(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dense: dict[int, Site],
    neurons: Sequence[tuple[int, int]],
    transcripts: Sequence[Transcript],
    batch_size: int,
    progress: Progress | None,
) -> list[tuple[float, tuple[Passage, ...]]]:
    """What each neuron gives on average, and its passages, from one forward over prompts and answers."""
    thinking = Thinking.of(tokenizer)
    rows = [Row.of(transcript, tokenizer, thinking) for transcript in transcripts]
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    values: dict[int, Tensor] = {}
    given: dict[int, Tensor] = {}

    def keep(into: dict[int, Tensor], at: int) -> Callable[[Tensor], None]:
        index = neurons[at][1]

        def take(output: Tensor) -> None:
            into[at] = output.detach()[..., index].float().reshape(answer.shape).cpu()

        return take

    def watch(at: int) -> list[Any]:
        site = dense[neurons[at][0]]
        value, product = keep(values, at), keep(given, at)
        before_narrow = narrow_map(site).register_forward_pre_hook(lambda _module, inputs: product(inputs[0]))
        return [site.watch(lambda _module, _arguments, output: value(output)), before_narrow]

    hooks = [hook for at in range(len(neurons)) for hook in watch(at)]
    best: list[list[tuple[float, int, int]]] = [[] for _ in neurons]
    totals, tokens = [0.0] * len(neurons), 0
    try:
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size]
            ids, answer = pad_rows([rows[at] for at in places])
            with torch.inference_mode():
                model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
            tokens += int(answer.sum())
            for at in range(len(neurons)):
                totals[at] += float(given[at][answer].double().sum())
                peak = values[at].masked_fill(~answer, -torch.inf).max(dim=1)
                found = zip(peak.values.tolist(), places, peak.indices.tolist(), strict=True)
                # An answer of a single token was never the input of a forward and has no place.
                best[at] = nlargest(PASSAGES, [*best[at], *(place for place in found if place[0] > -torch.inf)])
            if progress:
                progress(len(places))
    finally:
        for hook in hooks:
            hook.remove()
    passages = [
        tuple(_passage(tokenizer, transcripts[row], rows[row], value, place) for value, row, place in found)
        for found in best
    ]
    return [(total / max(1, tokens), of_neuron) for total, of_neuron in zip(totals, passages, strict=True)]


def _passage(
    tokenizer: PreTrainedTokenizerBase, transcript: Transcript, row: Row, activation: float, position: int
) -> Passage:
    first = row.counted.index(True)
    before, after = row.ids[max(first, position - AROUND) : position], row.ids[position + 1 : position + 1 + AROUND]
    said, token, follows = (str(tokenizer.decode(piece)) for piece in (before, [row.ids[position]], after))
    return Passage(transcript.pole, said, token, follows, activation)
