"""Every personality as rows of tables: in every layer ``a' = minimum(a, cap) + shift`` (equation 4 of the paper and
sums of it), and in the layers that have a dense part a vector that is added to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import LayerNeurons
from npti_export.adapter.neurons import NeuronSet
from npti_export.errors import NptiError
from npti_export.steering.output import OutputPlace
from npti_export.steering.sites import Site
from npti_export.traits import PersonalitySpec

NEUTRAL_CAP = np.inf
NEUTRAL_SHIFT = -0.0
"""x + (−0.0) is x for every x; x + 0.0 would turn −0.0 into +0.0."""


@dataclass(frozen=True)
class SteeringRow:
    """One personality at one layer.

    Args:
        cap: Of every neuron, float64 [width].
        shift: Of every neuron, float64 [width].
        residual: What is added to the residual stream, float64 [hidden]; None where nothing is.
    """

    cap: NDArray[np.float64]
    shift: NDArray[np.float64]
    residual: NDArray[np.float64] | None = None

    @property
    def moves(self) -> bool:
        """Whether anything is capped, shifted or added."""
        dense = self.residual is not None and bool(self.residual.any())
        return dense or bool(np.isfinite(self.cap).any() or self.shift.any())


def steering_rows(adapter: PersonalityAdapter, spec: PersonalitySpec, widths: list[int]) -> list[SteeringRow]:
    """The rows of a personality, one a layer.

    A term of strength s adds ``s · shift`` to its pole's neurons and caps those of the opposite pole at
    ``|target| · max(0, 1 − s) / s``: at 0 from strength 1 on as in the paper, at +inf as s goes to 0 (a target may be
    below 0 where neurons are not chosen by their delta). To the residual stream it adds ``s · residual``. Terms are
    summed in canonical order in float64; the smaller cap holds.

    Args:
        adapter: Where the neurons come from.
        spec: Which traits, towards which pole, how strongly.
        widths: Number of neurons of each layer.
    """
    layers = adapter.base_model.neurons_per_layer
    rows = [SteeringRow(np.full(width, NEUTRAL_CAP), np.full(width, NEUTRAL_SHIFT)) for width in widths]
    for term in adapter.personality(spec).terms:
        if term.strength == 0.0:
            continue
        poles = adapter.traits[term.trait].poles
        record = poles[term.pole]
        if record.caps == "opposite":
            opposite = poles[term.pole.opposite].neurons
            caps = np.abs(opposite.target.astype(np.float64)) * (max(0.0, 1.0 - term.strength) / term.strength)
            for layer, index, values in _by_layer(opposite, caps, layers):
                rows[layer].cap[index] = np.minimum(rows[layer].cap[index], values)
        shifts = record.neurons.shift.astype(np.float64) * term.strength
        for layer, index, values in _by_layer(record.neurons, shifts, layers):
            rows[layer].shift[index] += values
        if record.residual is not None:
            vectors = record.residual.vector.astype(np.float64) * term.strength
            for layer, vector in zip(record.residual.layer, vectors, strict=True):
                before = rows[layer].residual
                rows[layer] = replace(rows[layer], residual=vector if before is None else before + vector)
    return rows


def _by_layer(
    neurons: NeuronSet, values: NDArray[np.float64], layers: Sequence[LayerNeurons]
) -> list[tuple[int, NDArray[np.int32], NDArray[np.float64]]]:
    """Splits values along the layers, with the number of each neuron in its layer; one without neurons is left out."""
    there_are = np.flatnonzero(np.bincount(neurons.layer, minlength=1)).tolist()
    starts = np.searchsorted(neurons.layer, [*there_are, len(layers)]).tolist()  # they are sorted by layer
    pieces = [(layer, slice(*ends)) for layer, ends in zip(there_are, pairwise(starts), strict=True)]
    if neurons.expert is None:
        return [(layer, neurons.index[there], values[there]) for layer, there in pieces]
    number = neurons.index.copy()
    routed = neurons.expert >= 0
    whole = np.array([layer.dense + layer.shared for layer in layers], np.int32)[neurons.layer]
    each = np.array([layer.per_expert for layer in layers], np.int32)[neurons.layer]
    number[routed] += (whole + neurons.expert * each)[routed]
    return [(layer, number[there], values[there]) for layer, there in pieces]


@dataclass(frozen=True)
class RoundedRow:
    """One personality at one site, as its tables hold it.

    Args:
        cap: Of every neuron of the site, in its dtype [neurons].
        shift: Likewise.
        residual: What is added to the residual stream [hidden]; None where the layer has no dense part.
    """

    cap: Tensor
    shift: Tensor
    residual: Tensor | None


class SteeringTables:
    """Cap and shift of every slot at one site in the activation's dtype; slot 0 is neutral.

    They are [slots, width], of experts [slots, experts, width].

    Args:
        site: Where they belong.
        slots: How many personalities they hold, neutral included.
        output: Where the layer's dense part is added, if it has one; then there is a third table, ``residual``,
            [slots, hidden] in the dtype of that place.
    """

    def __init__(self, site: Site, slots: int, output: OutputPlace | None = None) -> None:
        shape: tuple[int, ...] = (slots, *site.shape)
        self.site, self.output = site, output
        self.residual: Tensor | None = None
        with torch.inference_mode(False):  # tables made in inference mode could not be written outside it
            self.cap = torch.full(shape, NEUTRAL_CAP, dtype=site.dtype, device=site.device)
            self.shift = torch.full(shape, NEUTRAL_SHIFT, dtype=site.dtype, device=site.device)
            if output is not None:
                shape = (slots, output.hidden)
                self.residual = torch.full(shape, NEUTRAL_SHIFT, dtype=output.dtype, device=output.device)

    @property
    def nbytes(self) -> int:
        """Memory that all slots take together."""
        return self.cap.nbytes + self.shift.nbytes + (0 if self.residual is None else self.residual.nbytes)

    def rounded(self, row: SteeringRow) -> RoundedRow:
        """The part of a personality that is the site's, rounded once from float64 to the tables' dtypes.

        Args:
            row: The personality at the site's layer.

        Raises:
            NptiError: If the tables' dtype cannot hold what is added.
        """
        own = slice(self.site.first, self.site.first + self.cap[0].numel())
        residual: Tensor | None = None
        if self.residual is not None and self.output is not None:
            neutral = np.full(self.output.hidden, NEUTRAL_SHIFT)
            added = neutral if row.residual is None else row.residual / self.output.scale
            residual = _fitting(added, self.residual.dtype, "residual vectors")
        cap = _rounded(row.cap[own], self.cap.dtype)
        return RoundedRow(cap, _fitting(row.shift[own], self.shift.dtype, "shifts"), residual)

    def write(self, slot: int, row: RoundedRow) -> None:
        """Writes a personality into a slot, in place."""
        self.cap[slot].view(-1).copy_(row.cap)
        self.shift[slot].view(-1).copy_(row.shift)
        if self.residual is not None and row.residual is not None:
            self.residual[slot].copy_(row.residual)

    def fill(self, slot: int, row: SteeringRow) -> None:
        """Writes a personality into a slot, or raises what :meth:`rounded` does and changes nothing."""
        self.write(slot, self.rounded(row))

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Moves the tables to another device or dtype, as ``nn.Module._apply`` does with parameters."""
        self.cap, self.shift = fn(self.cap), fn(self.shift)
        self.residual = None if self.residual is None else fn(self.residual)


def _fitting(values: NDArray[np.float64], dtype: torch.dtype, what: str) -> Tensor:
    """What is added to a model's numbers, rounded; refused where the dtype cannot hold it."""
    rounded = _rounded(values, dtype)
    limit = torch.finfo(dtype).max
    if not bool((rounded.abs() <= limit).all()):
        raise NptiError(f"The personality's {what} do not fit {dtype} (at most {limit:g}); lower the strength.")
    return rounded


def _rounded(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """The nearest numbers of a dtype.

    torch takes float64 through float32 to the 16-bit types and so rounds twice. Rounding to odd on the way (towards
    zero, and the last bit set where something was lost) keeps the halves apart, so that the second rounding is right.
    """
    if dtype.itemsize >= 4:
        return torch.from_numpy(values).to(dtype)
    with np.errstate(over="ignore"):
        between = values.astype(np.float32)
    # Most of a row is neutral and exact: only the others are worth the time (a strength may change at every token).
    lost = np.flatnonzero(between != values)
    nearer = between[lost]
    nearer = np.where(np.abs(nearer) > np.abs(values[lost]), np.nextafter(nearer, np.float32(0)), nearer)
    nearer.view(np.int32)[...] |= 1
    between[lost] = nearer
    return torch.from_numpy(between).to(dtype)
