"""Every personality as two rows a layer: ``a' = minimum(a, cap) + shift`` (equation 4 of the paper and sums of it)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.errors import NptiError
from npti_export.steering.sites import Site
from npti_export.traits import PersonalitySpec

NEUTRAL_CAP = np.inf
NEUTRAL_SHIFT = -0.0
"""x + (−0.0) is x for every x; x + 0.0 would turn −0.0 into +0.0."""


@dataclass(frozen=True)
class SteeringRow:
    """One personality at one layer: cap and shift of every neuron, float64 [width]."""

    cap: NDArray[np.float64]
    shift: NDArray[np.float64]


def steering_rows(adapter: PersonalityAdapter, spec: PersonalitySpec, widths: list[int]) -> list[SteeringRow]:
    """The rows of a personality, one a layer.

    A term of strength s adds ``s · shift`` to its pole's neurons and caps those of the opposite pole at
    ``target · max(0, 1 − s) / s``: at 0 from strength 1 on as in the paper, at +inf as s goes to 0. Terms are summed in
    canonical order in float64; the smaller cap holds.

    Args:
        adapter: Where the neurons come from.
        spec: Which traits, towards which pole, how strongly.
        widths: Number of neurons of each layer.
    """
    rows = [SteeringRow(np.full(width, NEUTRAL_CAP), np.full(width, NEUTRAL_SHIFT)) for width in widths]
    for term in adapter.personality(spec).terms:
        if term.strength == 0.0:
            continue
        poles = adapter.traits[term.trait].poles
        record = poles[term.pole]
        if record.residual is not None:
            raise NptiError(
                f"Personality {term}: the method {record.method.name} adds to the residual stream, which this release "
                "cannot do; identify the pole by the method npti or mean-shift."
            )
        if record.caps == "opposite":
            opposite = poles[term.pole.opposite].neurons
            caps = opposite.target.astype(np.float64) * (max(0.0, 1.0 - term.strength) / term.strength)
            for layer, index, values in _by_layer(opposite, caps):
                rows[layer].cap[index] = np.minimum(rows[layer].cap[index], values)
        shifts = record.neurons.shift.astype(np.float64) * term.strength
        for layer, index, values in _by_layer(record.neurons, shifts):
            rows[layer].shift[index] += values
    return rows


def _by_layer(
    neurons: NeuronSet, values: NDArray[np.float64]
) -> list[tuple[int, NDArray[np.int32], NDArray[np.float64]]]:
    """Splits values along the layers; a layer without neurons is left out."""
    if neurons.expert is not None:
        raise NptiError("Neurons of routed experts cannot be steered by this release; dense layers can.")
    pieces = [(int(layer), neurons.layer == layer) for layer in np.unique(neurons.layer)]
    return [(layer, neurons.index[there], values[there]) for layer, there in pieces]


class SteeringTables:
    """Cap and shift of every slot at one site, [slots, width] in the activation's dtype; slot 0 is neutral.

    Args:
        site: Where they belong.
        slots: How many personalities they hold, neutral included.
    """

    def __init__(self, site: Site, slots: int) -> None:
        shape = (slots, site.width)
        with torch.inference_mode(False):  # tables made in inference mode could not be written outside it
            self.cap = torch.full(shape, NEUTRAL_CAP, dtype=site.dtype, device=site.device)
            self.shift = torch.full(shape, NEUTRAL_SHIFT, dtype=site.dtype, device=site.device)

    def fill(self, slot: int, row: SteeringRow) -> None:
        """Writes a personality into a slot, rounded once from float64 to the tables' dtype, in place."""
        self.cap[slot].copy_(_rounded(row.cap, self.cap.dtype))
        self.shift[slot].copy_(_rounded(row.shift, self.shift.dtype))
        limit = torch.finfo(self.shift.dtype).max
        if not bool((self.shift[slot].abs() <= limit).all()):
            raise NptiError(
                f"The personality's shifts do not fit {self.shift.dtype} (at most {limit:g}); lower the strength."
            )

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Moves both tables to another device or dtype, as ``nn.Module._apply`` does with parameters."""
        self.cap, self.shift = fn(self.cap), fn(self.shift)


def _rounded(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """The nearest numbers of a dtype.

    torch takes float64 through float32 to the 16-bit types and so rounds twice. Rounding to odd on the way (towards
    zero, and the last bit set where something was lost) keeps the halves apart, so that the second rounding is right.
    """
    if dtype.itemsize >= 4:
        return torch.from_numpy(values).to(dtype)
    with np.errstate(over="ignore"):
        between = values.astype(np.float32)
    between = np.where(np.abs(between) > np.abs(values), np.nextafter(between, np.float32(0)), between)
    between.view(np.int32)[between != values] |= 1
    return torch.from_numpy(between).to(dtype)
