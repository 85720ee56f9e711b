"""Tensor parallelism: which part of a linear map, and so of a layer's neurons, this process has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def share_of(wide: nn.Module, neurons: int) -> tuple[int, int]:
    """The neurons of a layer that this process computes, from a number on; without tensor parallelism all of them.

    Args:
        wide: The map from hidden size to the neurons. What lies on several processes is a ``DTensor`` there, and its
            outputs are dealt out as ``torch.chunk`` does.
        neurons: How many the layer has.

    Returns:
        Number of the first one, and how many.

    >>> share_of(nn.Linear(4, 9), 9)
    (0, 9)
    """
    rank, ranks = _rank(getattr(wide, "weight", None))
    most = -(-neurons // ranks)
    first = min(rank * most, neurons)
    return first, min(most, neurons - first)


def first_rows(weight: Any) -> Tensor | None:
    """The plain part of a weight that begins with its first row; None where another process has that, or nobody.

    Args:
        weight: Of a linear map. One that is quantised may be a tensor of a type of its own.
    """
    if hasattr(weight, "to_local") and _rank(weight)[0] == 0:
        weight = weight.to_local()
    return weight if type(weight) in (Tensor, nn.Parameter) else None


def _rank(weight: Any) -> tuple[int, int]:
    """Which of how many processes has this part of a weight's rows."""
    for dimension, placement in enumerate(getattr(weight, "placements", ())):
        if placement.is_shard(0) or type(placement).__name__ == "_StridedShard":  # gate and up packed in one map
            return weight.device_mesh.get_local_rank(dimension), weight.device_mesh.size(dimension)
    return 0, 1
