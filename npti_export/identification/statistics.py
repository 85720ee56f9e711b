"""Statistics of neurons over the answers of one pole: whole numbers, so that parts add up to the same in any order.

A half is every other question, the same ones at both poles. All but the histogram is kept by half, so that how far the
halves agree can be told from the statistics alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from npti_export.errors import NptiError

# Bins of the activation histogram: steps of 1/128 up to 1, then 36 an octave. The middle of a bin is then off by at
# most 0.004 or 0.97 % of the value, within the 0.005 or 1 % that targets are allowed; the edges are exact in binary
# below 1. Nothing below -0.5 and above 2^20 is told apart: no activation function in use goes below -0.28, and no
# target that was ever seen comes near the upper end.
LINEAR_STEPS = 128
LOWEST = -0.5
BINS_PER_OCTAVE = 36
OCTAVES = 20

TOTAL_BITS = 20
"""Sums of activations are in units of 2^-20; one activation is at most 2^20 in size, so that 2^23 of the largest fit
into 64 bits, and of any that was ever seen (below 2^10) 2^33."""
MEAN_BITS = 16
"""Means of answers are in units of 2^-16 (the spread of an answer's mean is about 2^-7), and at most 2^10 in size: the
squares of 2^11 of the largest fit into 64 bits, of any that was seen (below 2^6) 2^19."""
LARGEST_MEAN = 2**10

SUMS = ("active", "active_squares", "active_tokens", "total", "answer_means", "answer_squares")
"""The arrays of :class:`NeuronCounts`, one number a neuron each."""


def bin_edges() -> NDArray[np.float32]:
    """Inner edges of the histogram's bins, ascending, float32 [edges]; there is one bin more than edges."""
    linear = np.arange(int(LOWEST * LINEAR_STEPS), LINEAR_STEPS) / LINEAR_STEPS
    geometric = 2.0 ** (np.arange(OCTAVES * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)
    return np.concatenate([linear, geometric]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class NeuronCounts:
    """What was counted over the generated tokens of some answers, for N neurons.

    Args:
        answers: Number of answers that had a token to count.
        tokens: Number of tokens counted.
        token_squares: Sum over answers of the squared number of tokens.
        active: Tokens on which the activation was above 0, int64 [N].
        active_squares: Sum over answers of the square of the answer's own such number, int64 [N].
        active_tokens: Sum over answers of that number times the answer's tokens, int64 [N].
        total: Sum of the activation over tokens in units of 2^-20, int64 [N].
        answer_means: Sum over answers of the answer's mean activation in units of 2^-16, int64 [N].
        answer_squares: Sum of these means' squares in units of 2^-32, int64 [N].
    """

    answers: int
    tokens: int
    token_squares: int
    active: NDArray[np.int64]
    active_squares: NDArray[np.int64]
    active_tokens: NDArray[np.int64]
    total: NDArray[np.int64]
    answer_means: NDArray[np.int64]
    answer_squares: NDArray[np.int64]

    def __add__(self, other: NeuronCounts) -> NeuronCounts:
        return NeuronCounts(
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.token_squares + other.token_squares,
            *(getattr(self, name) + getattr(other, name) for name in SUMS),
        )

    @property
    def probability(self) -> NDArray[np.float64]:
        """Share of tokens on which the activation was above 0, float64 [N]."""
        return self.active / max(1, self.tokens)

    @property
    def probability_variance(self) -> NDArray[np.float64]:
        """Variance of the probability over draws of answers, float64 [N]; infinite with fewer than two answers.

        Tokens of one answer are not independent, so the unit is the answer: the linearised variance of a ratio of sums
        over clusters, ``k / (k - 1) · Σ (active_i - p · tokens_i)² / tokens²`` over the k answers i.
        """
        if self.answers < 2:
            return np.full(len(self.active), np.inf)
        p = self.probability
        residual = self.active_squares - 2 * p * self.active_tokens + p**2 * self.token_squares
        return np.maximum(residual, 0.0) * (self.answers / (self.answers - 1) / self.tokens**2)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean activation over tokens, float64 [N]."""
        return self.total / (2.0**TOTAL_BITS * max(1, self.tokens))

    def answer_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance (n - 1) over answers of the answers' mean activations, float64 [N] each."""
        mean = self.answer_means / max(1, self.answers)
        spread = np.maximum(self.answer_squares - self.answers * mean**2, 0.0)
        return mean / 2.0**MEAN_BITS, spread / 4.0**MEAN_BITS / max(1, self.answers - 1)

    def above_zero(self, percentile: float) -> NDArray[np.bool_]:
        """Whether the percentile of the activation (nearest rank) is above 0, bool [N]; exact."""
        return self.tokens - self.active < _rank(percentile, self.tokens)


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """What was counted over the answers of one pole, for all N neurons of all layers one after the other.

    Args:
        widths: Number of neurons of each layer; they add up to N.
        halves: Counts over the answers to every other question, from the first and from the second on.
        histogram: Tokens of both halves in each bin, int32 [N, bins] (for 458,752 neurons 1.7 GB).
        stream: Sum over tokens of both halves of the residual stream behind each layer in units of 2^-20, int64
            [layers, hidden]; None where the layers return no single one, or it was not measured.
    """

    widths: tuple[int, ...]
    halves: tuple[NeuronCounts, NeuronCounts]
    histogram: NDArray[np.int32]
    stream: NDArray[np.int64] | None = None

    def __add__(self, other: NeuronStatistics) -> NeuronStatistics:
        """Statistics over the answers of both, exactly, in whatever order parts are added.

        Raises:
            NptiError: If they are of models of another shape.
        """
        if self.widths != other.widths:
            raise NptiError(
                f"Statistics over {sum(self.widths)} neurons and over {sum(other.widths)} neurons are not of one model."
            )
        first, second = (mine + theirs for mine, theirs in zip(self.halves, other.halves, strict=True))
        stream = None if self.stream is None or other.stream is None else self.stream + other.stream
        return NeuronStatistics(self.widths, (first, second), self.histogram + other.histogram, stream)

    @cached_property
    def whole(self) -> NeuronCounts:
        """Counts over both halves."""
        return self.halves[0] + self.halves[1]

    @property
    def stream_mean(self) -> NDArray[np.float64] | None:
        """Mean residual stream over tokens behind each layer, float64 [layers, hidden]."""
        return None if self.stream is None else self.stream / (2.0**TOTAL_BITS * max(1, self.whole.tokens))

    def percentile(self, percentile: float) -> NDArray[np.float32]:
        """The activation that so many per cent of the tokens do not exceed, to within a bin, float32 [N].

        Nearest rank, which is a value that occurred (NumPy's ``inverted_cdf``): that of the token number
        ``ceil(percentile / 100 · tokens)`` in ascending order. The middle of its bin is given; whether it is above 0,
        which decides whether a neuron may be chosen, is exact.
        """
        edges = bin_edges().astype(np.float64)
        middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]]).astype(np.float32)
        rank = _rank(percentile, self.whole.tokens)
        at = np.array([np.searchsorted(np.cumsum(bins), rank) for bins in self.histogram], dtype=np.int64)
        values = middles[np.minimum(at, len(middles) - 1)]
        above = self.whole.above_zero(percentile)
        return np.where(above, values, np.minimum(values, np.float32(0.0)))


def _rank(percentile: float, tokens: int) -> int:
    return max(1, math.ceil(percentile / 100 * tokens))
