"""Sums of the residual stream behind every decoder layer on answer tokens, in whole numbers as those of neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from npti_export.errors import NptiError
from npti_export.identification.neuron_counter import count_not_finite, whole
from npti_export.identification.processes import from_all, processes
from npti_export.identification.statistics import LARGEST, TOTAL_BITS


class StreamCounter:
    """Adds up what each layer returns, as long as that is one residual stream of [rows, tokens, hidden].

    Args:
        layers: Number of decoder layers.
        answer: Gives which tokens of the running forward count, bool [rows, tokens].
    """

    def __init__(self, layers: int, answer: Callable[[], Tensor]) -> None:
        self._answer = answer
        self._sums: list[Tensor | None] = [None] * layers
        self._not_finite = [0] * layers
        self._single = True

    def watch(self, layers: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Is told of every call of the layers from now on, until the hooks that it returns are removed."""
        return [layer.register_forward_hook(self._adding(at)) for at, layer in enumerate(layers)]

    def merge(self) -> None:
        """Adds what the counters of other processes added up; every process calls it."""
        if processes() == 1:
            return
        every = from_all((self._single, self._not_finite, [s if s is None else s.cpu() for s in self._sums]))
        self._single = all(single for single, _, _ in every)
        self._not_finite = [sum(counts) for counts in zip(*(counts for _, counts, _ in every), strict=True)]
        for at, of_layer in enumerate(zip(*(sums for _, _, sums in every), strict=True)):
            there = [of_process for of_process in of_layer if of_process is not None]
            alike = len({of_process.shape for of_process in there}) == 1
            self._single = self._single and alike
            self._sums[at] = torch.stack(there).sum(0) if alike else None

    def sums(self, names: str) -> NDArray[np.int64] | None:
        """What was added up, in units of 2^-20, int64 [layers, hidden]; None where a layer returns something else.

        Args:
            names: Of the list of layers, for the message.

        Raises:
            NptiError: If a number was not finite.
        """
        there = [of_layer.cpu().numpy() for of_layer in self._sums if of_layer is not None]
        if not self._single or len(there) < len(self._sums) or len({of_layer.shape for of_layer in there}) != 1:
            return None
        for at, count in enumerate(self._not_finite):
            if count:
                raise NptiError(
                    f"The residual stream behind {names}.{at} holds {count} numbers that are not finite; load the "
                    "model in another --dtype."
                )
        return np.stack(there)

    def _adding(self, at: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _layer, _arguments, output: self._add(at, output[0] if isinstance(output, tuple) else output)

    def _add(self, at: int, stream: Any) -> None:
        answer = self._answer()
        if not isinstance(stream, Tensor) or stream.shape[:-1] != answer.shape:
            self._single = False
            return
        values = stream[answer.to(stream.device)].float()
        if values.numel():
            self._not_finite[at] += count_not_finite(values)
        added = whole(values, TOTAL_BITS, LARGEST).long().sum(0)
        before = self._sums[at]
        self._sums[at] = added if before is None else before + added
