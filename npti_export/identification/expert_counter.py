"""Counts activations of the experts of one layer: of each over the tokens that were routed to it, and no others."""

from __future__ import annotations

import torch
from torch import Tensor

from npti_export.identification.processes import add_up
from npti_export.identification.statistics import (
    EXPERT_TOTALS,
    LARGEST_MEAN,
    MEAN_BITS,
    OCTAVES,
    SUMS,
    TOTAL_BITS,
    bin_edges,
)
from npti_export.identification.stream import fixed

ROWS_AT_ONCE = 2048
"""Activation rows counted at once, as tokens of a dense layer are."""


class ExpertCounter:
    """Counts on the experts' device in whole numbers only: the order of adding up changes nothing.

    Args:
        experts: How many they are.
        width: Number of neurons of each.
        device: Where the activations are.
    """

    def __init__(self, experts: int, width: int, device: torch.device) -> None:
        self.experts, self.width = experts, width
        self.edges = torch.from_numpy(bin_edges()).to(device)
        self.bins = len(self.edges) + 1
        self.offsets = torch.arange(width, device=device) * self.bins
        self.histogram = torch.zeros(experts * width * self.bins, dtype=torch.int32, device=device)
        self.sums = {name: torch.zeros(2, experts * width, dtype=torch.int64, device=device) for name in SUMS}
        self.totals = {name: torch.zeros(2, experts, dtype=torch.int64, device=device) for name in EXPERT_TOTALS}
        self.not_finite = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, values: Tensor, expert: Tensor, row: Tensor, half: Tensor) -> None:
        """Counts pairs of token and expert.

        Args:
            values: Activations, [pairs, width].
            expert: Which expert each pair belongs to, int64 [pairs].
            row: Which answer, int64 [pairs]; what one answer has at one expert comes in one call.
            half: Which half each answer belongs to, int64 [answers].
        """
        met, place = torch.unique(row * self.experts + expert, return_inverse=True)
        tokens = torch.bincount(place, minlength=len(met))[:, None]
        active = torch.zeros(len(met), self.width, dtype=torch.int64, device=values.device)
        total = torch.zeros_like(active)
        for begin in range(0, len(values), ROWS_AT_ONCE):
            now = slice(begin, begin + ROWS_AT_ONCE)
            part = values[now].float().contiguous()
            self.not_finite += (~part.isfinite()).sum()
            bins = torch.bucketize(part, self.edges, right=True) + self.offsets
            bins = (bins + expert[now, None] * (self.width * self.bins)).flatten()
            self.histogram.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))
            active.index_add_(0, place[now], (part > 0).long())
            total.index_add_(0, place[now], fixed(part, TOTAL_BITS, 2.0**OCTAVES))
        mean = fixed(total.double() / 2.0**TOTAL_BITS / tokens, MEAN_BITS, LARGEST_MEAN)
        at = half[met // self.experts] * self.experts + met % self.experts
        added = (active, active**2, active * tokens, total, mean, mean**2)
        for name, of_met in zip(SUMS, added, strict=True):
            self.sums[name].view(-1, self.width).index_add_(0, at, of_met)
        for name, number in zip(EXPERT_TOTALS, (torch.ones_like(tokens), tokens, tokens**2), strict=True):
            self.totals[name].view(-1).index_add_(0, at, number[:, 0])

    def merge(self) -> None:
        """Adds what the counters of the same experts counted in other processes; every process calls it."""
        add_up(self.histogram, *self.sums.values(), *self.totals.values(), self.not_finite)
