"""The dense part of a pole: what is added to the residual stream after some layers' feed-forward blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.base_model import BaseModel
from npti_export.errors import NptiError


@dataclass(frozen=True, eq=False)
class ResidualShift:
    """Vectors added to the residual stream at strength 1, each after the feed-forward block of one layer.

    Args:
        layer: Decoder layers, ascending, int16 [k].
        vector: What is added behind each, float32 [k, hidden].
    """

    layer: NDArray[np.int16]
    vector: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResidualShift):
            return NotImplemented
        return np.array_equal(self.layer, other.layer) and np.array_equal(self.vector, other.vector)

    __hash__ = None  # type: ignore[assignment]

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.vector.shape[-1])

    def check(self, model: BaseModel, where: str) -> None:
        """Holds the vectors against every invariant of the format.

        Args:
            model: The base model that the layers must lie in.
            where: File and pole, for the message.

        Raises:
            NptiError: With what was found and what was expected.
        """
        k = self.layer.size
        if self.layer.dtype != np.int16 or self.layer.shape != (k,) or not k:
            raise NptiError(
                f"{where}: residual_layer is {self.layer.dtype} {list(self.layer.shape)}, expected int16 [k], k from 1."
            )
        shape = self.vector.shape
        if self.vector.dtype != np.float32 or len(shape) != 2 or shape[0] != k or not shape[1]:
            raise NptiError(f"{where}: residual is {self.vector.dtype} {list(shape)}, expected float32 [{k}, hidden].")
        if not np.isfinite(self.vector).all():
            raise NptiError(f"{where}: residual holds a value that is not finite.")
        if self.layer.min() < 0 or self.layer.max() >= model.num_layers:
            raise NptiError(f"{where}: a residual_layer lies outside 0 to {model.num_layers - 1}.")
        if (np.diff(self.layer.astype(np.int32)) <= 0).any():
            raise NptiError(f"{where}: the layers in residual_layer do not ascend.")
