"""Counts the activations of one site: each neuron's over the tokens that reach it, which are all or its expert's."""

from __future__ import annotations

import torch
from torch import Tensor

from npti_export.identification.processes import add_up
from npti_export.identification.statistics import (
    EXPERT_TOTALS,
    LARGEST,
    LARGEST_MEAN,
    LINEAR_STEPS,
    LOWEST,
    MANTISSA_BITS,
    MEAN_BITS,
    SUMS,
    TOTAL_BITS,
    bin_edges,
)

VALUES_AT_ONCE = {"cpu": 2**17}
"""Activations counted at once, by kind of device: what a CPU's caches hold (ten times as many took half as long again
each)."""
MOST_VALUES_AT_ONCE = 2**25
"""On all others: about 0.5 GB of numbers in between."""
BINS = len(bin_edges()) + 1
MANTISSA = 23
ONE_IN_BITS = 127 << MANTISSA_BITS
"""Of a float32: the bits of its mantissa, and sign, exponent and the first bits of the mantissa of 1.0."""


class NeuronCounter:
    """Counts on the site's device in whole numbers only: the order of adding up changes nothing.

    Args:
        width: Number of neurons, of each expert where there are experts.
        device: Where the activations are.
        experts: How many there are; 0 for a dense layer, all of whose neurons every token reaches.
    """

    def __init__(self, width: int, device: torch.device, experts: int = 0) -> None:
        self.width, self.experts = width, experts
        self.groups = max(1, experts)
        self.offsets = torch.arange(width, dtype=torch.int32, device=device) * BINS
        self.histogram = torch.zeros(self.groups * width * BINS, dtype=torch.int32, device=device)
        self.sums = {name: torch.zeros(2, self.groups * width, dtype=torch.int64, device=device) for name in SUMS}
        self.totals = {name: torch.zeros(2, self.groups, dtype=torch.int64, device=device) for name in EXPERT_TOTALS}
        self.not_finite = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, values: Tensor, row: Tensor, half: Tensor, expert: Tensor | None = None) -> None:
        """Counts tokens, or pairs of token and expert.

        Args:
            values: Activations, [pairs, width].
            row: Which answer each pair belongs to, int64 [pairs]; what one answer has at one expert comes in one call.
            half: Which half each answer belongs to, int64 [answers].
            expert: Which expert each pair belongs to, int64 [pairs]; None in a dense layer.
        """
        expert = torch.zeros_like(row) if expert is None else expert
        met, place = torch.unique(row * self.groups + expert, return_inverse=True)
        tokens = torch.bincount(place, minlength=len(met))[:, None]
        # Whole numbers in floating types, which are added several times as fast: exact up to 2^24 tokens an answer, and
        # up to 2^53 units of 2^-20, which are 2^23 tokens of 2^10.
        active = torch.zeros(len(met), self.width, dtype=torch.float32, device=values.device)
        total = torch.zeros_like(active, dtype=torch.float64)
        at_once = max(1, VALUES_AT_ONCE.get(values.device.type, MOST_VALUES_AT_ONCE) // self.width)
        for begin in range(0, len(values), at_once):
            now = slice(begin, begin + at_once)
            part = values[now].float().contiguous()
            self.not_finite += count_not_finite(part)
            at = bin_numbers(part).add_(self.offsets)
            if self.experts:
                at += expert[now, None] * (self.width * BINS)
            at = at.flatten().long()
            self.histogram.scatter_add_(0, at, torch.ones_like(at, dtype=torch.int32))
            # 1 above 0, else 0: from a comparison's truth values it would take a CPU five times as long.
            active.index_add_(0, place[now], part.sign().relu_())
            total.index_add_(0, place[now], whole(part, TOTAL_BITS, LARGEST).double())
        mean = whole(total / 2.0**TOTAL_BITS / tokens, MEAN_BITS, LARGEST_MEAN).long()
        active, total = active.long(), total.long()
        into = half[met // self.groups] * self.groups + met % self.groups
        added = (active, active**2, active * tokens, total, mean, mean**2)
        for name, of_met in zip(SUMS, added, strict=True):
            self.sums[name].view(-1, self.width).index_add_(0, into, of_met)
        for name, number in zip(EXPERT_TOTALS, (torch.ones_like(tokens), tokens, tokens**2), strict=True):
            self.totals[name].view(-1).index_add_(0, into, number[:, 0])

    def merge(self) -> None:
        """Adds what the counters of the same site counted in other processes; every process calls it."""
        add_up(self.histogram, *self.sums.values(), *self.totals.values(), self.not_finite)


def bin_numbers(values: Tensor) -> Tensor:
    """The bin of each value, which is how many of :func:`bin_edges` it has reached; int32 of the shape of ``values``.

    Computed, not looked up: ``torch.bucketize`` takes twenty times as long on a CPU. From 1 on the number is that of
    the float's own bits; below 1 these are never ahead of the steps, so that the larger number is always the right one.

    Args:
        values: float32, contiguous.
    """
    below = int(LOWEST * LINEAR_STEPS) - 1
    steps = (values.clamp(below / LINEAR_STEPS, 1.0) * LINEAR_STEPS).floor_().int() - below
    bits = (values.view(torch.int32) >> (MANTISSA - MANTISSA_BITS)) - (ONE_IN_BITS - LINEAR_STEPS + below)
    return torch.maximum(steps, bits).clamp_(0, BINS - 1)


def count_not_finite(values: Tensor) -> int:
    """How many of the values, at least one, are no finite numbers.

    If any is not, the smallest or the largest is not: seeing these two costs a tenth of looking at each.
    """
    if bool(torch.stack(values.aminmax()).isfinite().all()):
        return 0
    return int((~values.isfinite()).sum())


def whole(values: Tensor, bits: int, largest: float) -> Tensor:
    """Numbers up to ``largest`` in size as multiples of 2^-bits: whole numbers, in the type and shape of ``values``.

    The same in float32 and float64: a power of two changes the exponent alone, and what overflows is too large anyway.
    """
    most = largest * 2.0**bits
    return (values * 2.0**bits).round_().clamp_(-most, most)
