"""Measure: transcripts → statistics of every neuron and of the residual stream on generated tokens, by one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.base_model import LayerNeurons
from npti_export.errors import NptiError
from npti_export.identification.answers import Progress, Prompt, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.identification.neuron_counter import NeuronCounter
from npti_export.identification.processes import in_turns
from npti_export.identification.statistics import EXPERT_TOTALS, SUMS, ExpertTotals, NeuronCounts, NeuronStatistics
from npti_export.identification.stream import StreamCounter
from npti_export.steering.sites import Site, decoder_layers, neurons_per_layer
from npti_export.steering.thinking import Thinking


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    transcripts: Sequence[Transcript],
    batch_size: int = 32,
    progress: Progress | None = None,
    halves: Sequence[int] | None = None,
) -> NeuronStatistics:
    """Runs the model over prompt and answer of each transcript and counts on the generated tokens.

    A token counts where it is the input of a forward: the answer's first to last but one (the last is never fed). End
    signs are always last, so they never count. Nor does a reasoning model's thinking.

    Args:
        model: The model that gave the answers, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        transcripts: Of one pole.
        batch_size: Rows of one forward.
        progress: Told how many more transcripts are done.
        halves: Which half each transcript belongs to, 0 or 1; None takes every other one.

    Raises:
        NptiError: If an activation, or the residual stream, is no finite number, or the model is spread over processes.
    """
    if any(site.elsewhere for site in sites):
        raise NptiError(
            "Neurons cannot be measured under tensor parallelism, where each process sees a part of them; load the "
            "model in one process (device_map='auto' spreads it over several GPUs)."
        )
    thinking = Thinking.of(tokenizer)
    rows = [Row.of(transcript, tokenizer, thinking) for transcript in transcripts]
    halves = [at % 2 for at in range(len(rows))] if halves is None else halves
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    counters = [
        NeuronCounter(site.width, site.device, 0 if site.experts is None else site.experts.count) for site in sites
    ]
    positions: dict[str, Tensor] = {}

    def counting(site: Site, counter: NeuronCounter) -> Callable[..., None]:
        def count(_module: object, _arguments: object, output: Tensor) -> None:
            # A model that is spread over several GPUs has its layers on others than its ids.
            answer, row, half = (positions[name].to(output.device) for name in ("answer", "row", "half"))
            if site.experts is None:
                counter.add(output.reshape(*answer.shape, -1)[answer], row, half)
                return
            expert, token, values = site.experts.call().pairs(output)
            counts = answer.flatten()[token]
            counter.add(values[counts], token[counts] // answer.shape[1], half, expert[counts])

        return count

    layers_name, layers = decoder_layers(model)
    stream = StreamCounter(len(layers), lambda: positions["answer"])
    hooks = [site.watch(counting(site, counter)) for site, counter in zip(sites, counters, strict=True)]
    of_layers = stream.watch(list(layers))
    try:
        for places, of_all in in_turns([order[at : at + batch_size] for at in range(0, len(order), batch_size)]):
            if places is not None:
                ids, answer = pad_rows([rows[at] for at in places])
                positions["answer"] = answer.to(model.device)
                positions["row"] = answer.nonzero()[:, 0].to(model.device)
                positions["half"] = torch.tensor([halves[at] for at in places], device=model.device)
                with torch.inference_mode():
                    model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
            if progress:
                progress(sum(map(len, of_all)))
    finally:
        for hook in hooks:
            hook.remove()
        for of_layer in of_layers:
            of_layer.remove()
    for counter in counters:
        counter.merge()
    stream.merge()
    for site, counter in zip(sites, counters, strict=True):
        if int(counter.not_finite):
            raise NptiError(
                f"{site.name} gave {int(counter.not_finite)} activations that are no finite numbers; load the model in "
                "another --dtype."
            )
    counted = np.array([sum(row.counted) for row in rows], dtype=np.int64)
    lengths = [counted[np.array(halves, dtype=np.int64) == half] for half in (0, 1)]
    return statistics_of(counters, lengths, stream.sums(layers_name), neurons_per_layer(sites))


@dataclass(frozen=True)
class Row:
    """Prompt and answer of a transcript, and which of these tokens count."""

    ids: list[int]
    counted: list[bool]

    @staticmethod
    def of(transcript: Transcript, tokenizer: PreTrainedTokenizerBase, thinking: Thinking | None) -> Row:
        """Prompt and answer as they are fed; a reasoning model's thinking does not count."""
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona or None), tokenizer)
        ids = [*prompt, *transcript.token_ids[:-1]]
        thought = thinking.covers(torch.tensor([ids]))[0].tolist() if thinking else [False] * len(ids)
        return Row(ids, [at >= len(prompt) and not covered for at, covered in enumerate(thought)])


def pad_rows(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and where answers stand, [rows, longest]; causal attention never looks at what is behind."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        answer[at, : len(row.ids)] = torch.tensor(row.counted)
    return ids, answer


def statistics_of(
    counters: Sequence[NeuronCounter],
    lengths: Sequence[NDArray[np.int64]],
    stream: NDArray[np.int64] | None = None,
    layers: Sequence[LayerNeurons] | None = None,
) -> NeuronStatistics:
    """What the counters of all sites counted, one after the other.

    Args:
        counters: One a site, in their order.
        lengths: Of both halves, how many tokens each answer counted, int64 [answers].
        stream: Sums of the residual stream, int64 [layers, hidden], if it was measured.
        layers: How many neurons each layer has; None where every counter is that of a dense layer.
    """
    widths = tuple(counter.width for counter in counters) if layers is None else tuple(n.total for n in layers)
    of_experts = [counter for counter in counters if counter.experts]
    halves = [
        NeuronCounts(
            int((of_half > 0).sum()),
            int(of_half.sum()),
            int((of_half**2).sum()),
            *_sums(counters, half),
        )
        for half, of_half in enumerate(lengths)
    ]
    if of_experts and layers is not None:
        halves = [replace(counts, experts=_totals(of_experts, half, layers)) for half, counts in enumerate(halves)]
    histogram = np.concatenate([counter.histogram.cpu().numpy() for counter in counters])
    return NeuronStatistics(widths, (halves[0], halves[1]), histogram.reshape(sum(widths), -1), stream)


def _totals(counters: Sequence[NeuronCounter], half: int, layers: Sequence[LayerNeurons]) -> ExpertTotals:
    """Answers and tokens of every routed expert in one half."""
    answers, tokens, squares = (
        np.concatenate([counter.totals[name][half].cpu().numpy() for counter in counters]) for name in EXPERT_TOTALS
    )
    return ExpertTotals(tuple(layers), answers, tokens, squares)


def _sums(counters: Sequence[NeuronCounter], half: int) -> list[Any]:
    """The arrays of one half's counts, one site after the other."""
    return [np.concatenate([counter.sums[name][half].cpu().numpy() for counter in counters]) for name in SUMS]
