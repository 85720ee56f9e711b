"""Muon in float32: torch.optim.Muon computes in bfloat16, which a CPU without AVX-512 multiplies 50 times slower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Coefficients and number of steps of the quintic iteration as Keller Jordan published them with Muon (2024): they bring
# every singular value into 0.7 to 1.2, not to 1, but in five steps.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
# An update then has the root mean square of AdamW's (Moonshot AI, "Muon is scalable", 2025).
RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose every step is made orthogonal, for the matrices inside a network.

    Args:
        matrices: Parameters with two dimensions.
        lr: Learning rate, of the size that AdamW takes.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step down the gradients that are there; no closure is called."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.add_(update, alpha=-group["lr"] * RMS * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1, float32 [m, n].

    >>> singular = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 1.0, 0.2]))))
    >>> bool(singular.min() > 0.6), bool(singular.max() < 1.3)
    (True, True)
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
