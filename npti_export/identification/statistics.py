"""Statistics of neurons over the answers of one pole: whole numbers, so that parts add up to the same in any order.

A half is every other question, the same ones at both poles. All but the histogram is kept by half, so that how far the
halves agree can be told from the statistics alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.base_model import LayerNeurons
from npti_export.errors import NptiError

# Bins of the activation histogram: steps of 1/128 up to 1, then of 1/64 of the octave that the value is in, which are
# the first six bits of its mantissa. The middle of a bin is then off by at most 0.004 or 0.8 % of the value, within the
# 0.005 or 1 % that targets are allowed, and all edges are exact in float32. Nothing below -0.5 and from 2^20 on is told
# apart: no activation function in use goes below -0.28, and no target that was ever seen comes near the upper end.
LINEAR_STEPS = 128
LOWEST = -0.5
MANTISSA_BITS = 6
OCTAVES = 20

LARGEST = 2.0**OCTAVES
"""The size up to which activations are added up; what is larger counts as this."""
TOTAL_BITS = 20
"""Sums of activations are in units of 2^-20; one activation is at most 2^20 in size, so that 2^23 of the largest fit
into 64 bits, and of any that was ever seen (below 2^10) 2^33."""
MEAN_BITS = 16
"""Means of answers are in units of 2^-16 (the spread of an answer's mean is about 2^-7), and at most 2^10 in size: the
squares of 2^11 of the largest fit into 64 bits, of any that was seen (below 2^6) 2^19."""
LARGEST_MEAN = 2**10

SUMS = ("active", "active_squares", "active_tokens", "total", "answer_means", "answer_squares")
"""The arrays of :class:`NeuronCounts`, one number a neuron each."""
EXPERT_TOTALS = ("answers", "tokens", "token_squares")
"""What every routed expert has of its own in the place of these numbers of all neurons."""

MIN_EXPERT_TOKENS = 200
"""An expert with fewer tokens than this at either pole is left out: of 200 tokens a pole, even if they were
independent, the 95 % interval of a delta is ±.098, as wide as the paper's threshold of .1."""


def bin_edges() -> NDArray[np.float32]:
    """Inner edges of the histogram's bins, ascending, float32 [edges]; there is one bin more than edges."""
    linear = np.arange(int(LOWEST * LINEAR_STEPS), LINEAR_STEPS) / LINEAR_STEPS
    steps = 2**MANTISSA_BITS
    octaves = 2.0 ** np.arange(OCTAVES)[:, None] * (1 + np.arange(steps) / steps)
    return np.concatenate([linear, octaves.ravel(), [2.0**OCTAVES]]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ExpertTotals:
    """What each routed expert got of the answers: shares and means of its neurons are over its own tokens.

    Args:
        layers: How many neurons each layer has.
        answers: Answers of which it got a token, int64 [experts of all layers].
        tokens: Tokens that were routed to it, likewise.
        token_squares: Sum over answers of the squared number of them, likewise.
    """

    layers: tuple[LayerNeurons, ...]
    answers: NDArray[np.int64]
    tokens: NDArray[np.int64]
    token_squares: NDArray[np.int64]

    def __add__(self, other: ExpertTotals) -> ExpertTotals:
        return ExpertTotals(self.layers, *(getattr(self, name) + getattr(other, name) for name in EXPERT_TOTALS))

    def of_neurons(self, name: str, whole: int) -> NDArray[np.int64]:
        """One of the totals for all neurons in flat order, int64 [N]; ``whole`` for those of no routed expert."""
        parts, first = [], 0
        for layer in self.layers:
            of_experts = getattr(self, name)[first : first + layer.experts]
            parts += [np.full(layer.dense + layer.shared, whole), np.repeat(of_experts, layer.per_expert)]
            first += layer.experts
        return np.concatenate(parts).astype(np.int64)

    def numbers(self) -> list[tuple[int, int]]:
        """Layer and number of every routed expert, in the order of the totals."""
        return [(at, expert) for at, layer in enumerate(self.layers) for expert in range(layer.experts)]


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
        experts: The first three numbers of every routed expert; None for a model without.
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
    experts: ExpertTotals | None = None

    def __add__(self, other: NeuronCounts) -> NeuronCounts:
        added = NeuronCounts(
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.token_squares + other.token_squares,
            *(getattr(self, name) + getattr(other, name) for name in SUMS),
        )
        if self.experts is None or other.experts is None:
            return added
        return replace(added, experts=self.experts + other.experts)

    def of_neurons(self, name: str) -> NDArray[np.int64]:
        """``answers``, ``tokens`` or ``token_squares`` of each neuron, int64 [N]; [] where all have the same."""
        whole: int = getattr(self, name)
        return np.array(whole, np.int64) if self.experts is None else self.experts.of_neurons(name, whole)

    @property
    def probability(self) -> NDArray[np.float64]:
        """Share of tokens on which the activation was above 0, float64 [N]."""
        return self.active / np.maximum(1, self.of_neurons("tokens"))

    @property
    def probability_variance(self) -> NDArray[np.float64]:
        """Variance of the probability over draws of answers, float64 [N]; infinite with fewer than two answers.

        Tokens of one answer are not independent, so the unit is the answer: the linearised variance of a ratio of sums
        over clusters, ``k / (k - 1) · Σ (active_i - p · tokens_i)² / tokens²`` over the k answers i.
        """
        if self.answers < 2:
            return np.full(len(self.active), np.inf)
        p, answers, tokens = self.probability, self.of_neurons("answers"), self.of_neurons("tokens")
        residual = self.active_squares - 2 * p * self.active_tokens + p**2 * self.of_neurons("token_squares")
        factor = answers / np.maximum(1, answers - 1) / np.maximum(1, tokens) ** 2
        return np.where(answers < 2, np.inf, np.maximum(residual, 0.0) * factor)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean activation over tokens, float64 [N]."""
        return self.total / (2.0**TOTAL_BITS * np.maximum(1, self.of_neurons("tokens")))

    def answer_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance (n - 1) over answers of the answers' mean activations, float64 [N] each."""
        answers = self.of_neurons("answers")
        mean = self.answer_means / np.maximum(1, answers)
        spread = np.maximum(self.answer_squares - answers * mean**2, 0.0)
        return mean / 2.0**MEAN_BITS, spread / 4.0**MEAN_BITS / np.maximum(1, answers - 1)

    def above_zero(self, percentile: float) -> NDArray[np.bool_]:
        """Whether the percentile of the activation (nearest rank) is above 0, bool [N]; exact."""
        tokens = self.of_neurons("tokens")
        return tokens - self.active < _rank(percentile, tokens)


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """What was counted over the answers of one pole, for all N neurons of all layers one after the other.

    Args:
        widths: Number of neurons of each layer; they add up to N.
        halves: Counts over the answers to every other question, from the first and from the second on.
        histogram: Tokens of both halves in each bin, int32 [N, bins] (for 458,752 neurons 2.7 GB).
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
    def layers(self) -> tuple[LayerNeurons, ...]:
        """How many neurons each layer has, and how many of them are of routed experts."""
        experts = self.halves[0].experts
        return experts.layers if experts is not None else tuple(LayerNeurons(width) for width in self.widths)

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
        ranks = np.broadcast_to(_rank(percentile, self.whole.of_neurons("tokens")), len(self.histogram))
        ranked = zip(self.histogram, ranks, strict=True)
        at = np.array([np.searchsorted(np.cumsum(bins), rank) for bins, rank in ranked], dtype=np.int64)
        values = middles[np.minimum(at, len(middles) - 1)]
        above = self.whole.above_zero(percentile)
        return np.where(above, values, np.minimum(values, np.float32(0.0)))


def considered(one: NeuronCounts, other: NeuronCounts) -> NDArray[np.bool_]:
    """Which neurons can be chosen: all but those of experts that got too few tokens at either pole, bool [N].

    Args:
        one: Counts over all answers of one pole.
        other: Of the other pole.
    """
    enough = [counts.of_neurons("tokens") >= MIN_EXPERT_TOKENS for counts in (one, other)]
    if one.experts is None or other.experts is None:
        return np.ones(len(one.active), bool)
    routed = one.experts.of_neurons("tokens", -1) >= 0
    return ~routed | (enough[0] & enough[1])


def left_out(one: NeuronCounts, other: NeuronCounts) -> list[tuple[int, int]]:
    """Layer and number of the experts that got too few tokens at either pole."""
    if one.experts is None or other.experts is None:
        return []
    fewest = np.minimum(one.experts.tokens, other.experts.tokens)
    few = (fewest < MIN_EXPERT_TOKENS).tolist()
    return [number for number, too_few in zip(one.experts.numbers(), few, strict=True) if too_few]


def _rank(percentile: float, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    rank: NDArray[np.int64] = np.maximum(1, np.ceil(percentile / 100 * tokens)).astype(np.int64)
    return rank
