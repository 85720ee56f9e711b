"""Measure: transcripts → statistics of every neuron on generated tokens, by one forward over prompt and answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.identification.answers import Progress, Prompt, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.steering.sites import Site

# Bins of the activation histogram: steps of 1/128 up to 1, then 36 an octave. The middle of a bin is then off by at
# most 0.004 or 0.97 % of the value, within the 0.005 or 1 % that targets are allowed; the edges are exact in binary
# below 1. Nothing below -0.5 and above 2^20 is told apart: no activation function in use goes below -0.28, and no
# target that was ever seen comes near the upper end.
LINEAR_STEPS = 128
LOWEST = -0.5
BINS_PER_OCTAVE = 36
OCTAVES = 20
# Tokens counted at once: with 14,336 neurons a layer about 0.3 GB of bin numbers.
TOKENS_AT_ONCE = 2048


def bin_edges() -> NDArray[np.float32]:
    """Inner edges of the histogram's bins, ascending, float32 [edges]; there is one bin more than edges."""
    linear = np.arange(int(LOWEST * LINEAR_STEPS), LINEAR_STEPS) / LINEAR_STEPS
    geometric = 2.0 ** (np.arange(OCTAVES * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)
    return np.concatenate([linear, geometric]).astype(np.float32)


@dataclass(frozen=True)
class NeuronStatistics:
    """What was counted over the generated tokens of one pole, for all neurons of all layers one after the other.

    Args:
        widths: Number of neurons of each layer; they add up to N.
        tokens: Number of tokens counted.
        answers: Number of answers.
        active: Tokens on which the activation was above 0, int64 [N].
        histogram: Tokens in each bin, int32 [N, bins] (for 458,752 neurons 1.7 GB).
        total: Sum of the activation over tokens, float64 [N].
        answer_means: Sum over answers of the answer's mean activation, float64 [N].
        answer_squares: Sum of these means' squares, float64 [N].
    """

    widths: tuple[int, ...]
    tokens: int
    answers: int
    active: NDArray[np.int64]
    histogram: NDArray[np.int32]
    total: NDArray[np.float64]
    answer_means: NDArray[np.float64]
    answer_squares: NDArray[np.float64]

    def __add__(self, other: NeuronStatistics) -> NeuronStatistics:
        return NeuronStatistics(
            self.widths,
            self.tokens + other.tokens,
            self.answers + other.answers,
            self.active + other.active,
            self.histogram + other.histogram,
            self.total + other.total,
            self.answer_means + other.answer_means,
            self.answer_squares + other.answer_squares,
        )

    @property
    def probability(self) -> NDArray[np.float64]:
        """Share of tokens on which the activation was above 0, float64 [N]."""
        return self.active / max(1, self.tokens)

    def percentile(self, percentile: float) -> NDArray[np.float32]:
        """The activation that so many per cent of the tokens do not exceed, to within a bin, float32 [N].

        Nearest rank, which is a value that occurred (NumPy's ``inverted_cdf``): that of the token number
        ``ceil(percentile / 100 · tokens)`` in ascending order. The middle of its bin is given; whether it is above 0,
        which decides whether a neuron may be chosen, is exact.
        """
        edges = bin_edges().astype(np.float64)
        middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]]).astype(np.float32)
        rank = max(1, math.ceil(percentile / 100 * self.tokens))
        at = np.array([np.searchsorted(np.cumsum(bins), rank) for bins in self.histogram], dtype=np.int64)
        values = middles[np.minimum(at, len(middles) - 1)]
        above = self.tokens - self.active < rank
        return np.where(above, values, np.minimum(values, np.float32(0.0)))

    def answer_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance (n − 1) over answers of the answers' mean activations, float64 [N] each."""
        mean = self.answer_means / max(1, self.answers)
        spread = np.maximum(self.answer_squares - self.answers * mean**2, 0.0)
        return mean, spread / max(1, self.answers - 1)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    transcripts: Sequence[Transcript],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> NeuronStatistics:
    """Runs the model over prompt and answer of each transcript and counts on the generated tokens.

    A token counts where it is the input of a forward: the answer's first to last but one (the last is never fed). End
    signs are always last, so they never count.

    Args:
        model: The model that gave the answers, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        transcripts: Of one pole.
        batch_size: Rows of one forward.
        progress: Told how many more transcripts are done.
    """
    counters = [NeuronCounter(site.width, site.device) for site in sites]
    positions: dict[str, Tensor] = {}

    def counting(counter: NeuronCounter) -> Callable[..., None]:
        return lambda _module, _arguments, output: counter.add(output[positions["answer"]], positions["row"])

    hooks = [
        site.activation.register_forward_hook(counting(counter)) for site, counter in zip(sites, counters, strict=True)
    ]
    rows = [_Row.of(transcript, tokenizer) for transcript in transcripts]
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    tokens = 0
    try:
        for begin in range(0, len(order), batch_size):
            batch = [rows[at] for at in order[begin : begin + batch_size]]
            ids, answer = _pad(batch)
            positions["answer"] = answer.to(model.device)
            positions["row"] = answer.nonzero()[:, 0].to(model.device)
            tokens += int(answer.sum())
            with torch.inference_mode():
                model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
            if progress:
                progress(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return statistics_of(counters, tokens, sum(row.counted > 0 for row in rows))


@dataclass(frozen=True)
class _Row:
    """Prompt and answer of a transcript; ``counted`` answer tokens from ``first`` on are inputs."""

    ids: list[int]
    first: int
    counted: int

    @staticmethod
    def of(transcript: Transcript, tokenizer: PreTrainedTokenizerBase) -> _Row:
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona), tokenizer)
        fed = list(transcript.token_ids[:-1])
        return _Row(prompt + fed, len(prompt), len(fed))


def _pad(rows: list[_Row]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and where answers stand, [rows, longest]; causal attention never looks at what is behind."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        answer[at, row.first : row.first + row.counted] = True
    return ids, answer


class NeuronCounter:
    """Counts activations at one site, on its device.

    Args:
        width: Number of neurons.
        device: Where the activations are.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.edges = torch.from_numpy(bin_edges()).to(device)
        self.bins = len(self.edges) + 1
        self.offsets = torch.arange(width, device=device) * self.bins
        self.active = torch.zeros(width, dtype=torch.int64, device=device)
        self.histogram = torch.zeros(width * self.bins, dtype=torch.int32, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.answer_means = torch.zeros(width, dtype=torch.float64, device=device)
        self.answer_squares = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, values: Tensor, row: Tensor) -> None:
        """Counts the tokens of some answers.

        Args:
            values: Activations, [tokens, width].
            row: Which answer each token belongs to, ascending, int64 [tokens]; an answer comes in one call.
        """
        if not len(row):
            return
        values = values.float()
        self.active += (values > 0).sum(0)
        for part in torch.split(values, TOKENS_AT_ONCE):
            bins = (torch.bucketize(part.contiguous(), self.edges, right=True) + self.offsets).flatten()
            self.histogram.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))
        sums = torch.zeros(int(row[-1]) + 1, values.shape[1], dtype=torch.float64, device=values.device)
        sums.index_add_(0, row, values.double())
        counts = torch.bincount(row, minlength=len(sums))
        means = sums[counts > 0] / counts[counts > 0, None]
        self.total += sums.sum(0)
        self.answer_means += means.sum(0)
        self.answer_squares += (means**2).sum(0)


def statistics_of(counters: Sequence[NeuronCounter], tokens: int, answers: int) -> NeuronStatistics:
    """What the counters of all sites counted, one after the other.

    Args:
        counters: One a site, in their order.
        tokens: Number of tokens that each of them counted.
        answers: Number of answers that these belong to.
    """

    def joined(name: str) -> Any:
        return np.concatenate([getattr(counter, name).cpu().numpy() for counter in counters])

    return NeuronStatistics(
        tuple(len(counter.active) for counter in counters),
        tokens,
        answers,
        joined("active"),
        joined("histogram").reshape(-1, len(bin_edges()) + 1),
        joined("total"),
        joined("answer_means"),
        joined("answer_squares"),
    )
