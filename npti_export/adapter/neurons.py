"""The neurons of one pole and the edit at strength 1: the arrays that an adapter file holds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.base_model import BaseModel
from npti_export.errors import NptiError

DTYPES: dict[str, type[np.generic]] = {
    "layer": np.int16,
    "expert": np.int16,
    "index": np.int32,
    "shift": np.float32,
    "target": np.float32,
    "delta": np.float32,
    "mean_difference": np.float32,
    "effect_size": np.float32,
}
"""Arrays of a set and their dtypes, as in memory so on disk."""

OPTIONAL = ("expert", "mean_difference", "effect_size")


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons of one pole, sorted by (layer, expert, index), all arrays of one length n.

    Args:
        layer: Decoder layer, int16 [n].
        index: Gate unit within the layer (or within its expert), int32 [n].
        shift: What is added to the activation at strength 1, float32 [n].
        target: 95th percentile of the activation over the pole's own generated tokens, float32 [n].
        delta: Probability under the pole minus probability under the opposite pole, float32 [n].
        expert: Routed expert, -1 for a dense or shared unit, int16 [n]; None for a model without experts.
        mean_difference: Mean activation of the pole minus that of the opposite, float32 [n]; None where not known.
        effect_size: Cohen's d of the same, from per-answer means, float32 [n]; None where not known.
    """

    layer: NDArray[np.int16]
    index: NDArray[np.int32]
    shift: NDArray[np.float32]
    target: NDArray[np.float32]
    delta: NDArray[np.float32]
    expert: NDArray[np.int16] | None = None
    mean_difference: NDArray[np.float32] | None = None
    effect_size: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.layer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)

    __hash__ = None  # type: ignore[assignment]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that are there, by name."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in present.items() if array is not None}

    def check(self, model: BaseModel, where: str) -> None:
        """Holds the set against every invariant of the format.

        Args:
            model: The base model that layers and indices must lie in.
            where: File and pole, for the message.

        Raises:
            NptiError: With what was found and what was expected.
        """
        n = self.layer.size  # not len(): a foreign file may hold a scalar
        for name, array in self.arrays().items():
            if array.dtype != DTYPES[name] or array.shape != (n,):
                raise NptiError(
                    f"{where}: {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(DTYPES[name])} [{n}]."
                )
            if not np.isfinite(array).all():
                raise NptiError(f"{where}: {name} holds a value that is not finite.")
        if n and not (self.layer.min() >= 0 and self.layer.max() < model.num_layers):
            raise NptiError(f"{where}: a layer lies outside 0 to {model.num_layers - 1}.")
        if (np.abs(self.delta) > 1).any():
            raise NptiError(f"{where}: a delta lies outside -1 to 1.")
        expert = self.expert if self.expert is not None else np.full(n, -1, np.int16)
        self._check_range(model, expert, where)
        mixture = any(layer.experts for layer in model.neurons_per_layer)
        if mixture != (self.expert is not None):
            found, has = ("there", "no") if self.expert is not None else ("missing", "routed")
            raise NptiError(f"{where}: the tensor expert is {found}, and the base model has {has} experts.")
        self._check_order(expert, where)

    def _check_order(self, expert: NDArray[np.int16], where: str) -> None:
        # One number a neuron that sorts as (layer, expert, index) does: 15, 16 and 31 bits.
        key = (self.layer.astype(np.int64) << 47) + ((expert.astype(np.int64) + 1) << 31) + self.index
        steps = np.diff(key)
        if (steps < 0).any():
            raise NptiError(f"{where}: the neurons are not sorted by (layer, expert, index).")
        if not steps.all():
            at = int(np.flatnonzero(steps == 0)[0])
            raise NptiError(f"{where}: neuron {self._named(at, expert)} stands there twice.")

    def _check_range(self, model: BaseModel, expert: NDArray[np.int16], where: str) -> None:
        layers = model.neurons_per_layer
        experts = np.array([layer.experts for layer in layers])[self.layer]
        whole = np.array([layer.dense + layer.shared for layer in layers])[self.layer]
        each = np.array([layer.per_expert for layer in layers])[self.layer]
        width = np.where(expert < 0, whole, each)
        outside = (expert < -1) | (expert >= experts) | (self.index < 0) | (self.index >= width)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise NptiError(
                f"{where}: neuron {self.layer[at]}:{self.index[at]} (expert {expert[at]}) is not in the base model, "
                f"whose layer {self.layer[at]} has {experts[at]} experts and {width[at]} such neurons."
            )

    def _named(self, at: int, expert: NDArray[np.int16]) -> str:
        of_expert = f" of expert {expert[at]}" if expert[at] >= 0 else ""
        return f"{self.layer[at]}:{self.index[at]}{of_expert}"
