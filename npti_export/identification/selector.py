"""Which neurons are wanted and what is to move them, and which ways are tried where a measurement is to decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.records import (
    FITTED,
    HYBRID,
    MEAN_SHIFT,
    MOVES_BY_MEAN,
    NPTI,
    RESIDUAL,
    Caps,
    Method,
)
from npti_export.errors import NptiError

METHODS = (NPTI, MEAN_SHIFT, RESIDUAL, HYBRID, FITTED)
AUTO = "auto"
"""Every method is tried on questions held back, and each pole takes its own."""
FIRST_TOKEN_TOO = "last_prompt+generated"
"""Positions at which the last token of the prompt is steered too, and so the first token of the answer."""
SHARES = (0.25, 0.5)
"""Of all neurons, how many ``mean-shift`` moves, those of the largest effect size; the first unless a measurement
decides, and the one that ``hybrid`` takes. Measured at the same cost: on a 5.9 M-parameter chat model the quarter has
the larger effect on two of three traits, the half on one; on npti-demo they are alike up to a perplexity ratio of 1.3,
and from there on the half has more (eval/results/methods.md)."""
MOST_LAYERS = 4
"""Layers that ``residual`` and ``hybrid`` are tried behind, and ``fitted`` vectors added behind, in the middle of as
many equal stretches."""
USUAL_LAYER = 3
"""The layer behind which a residual is added where no measurement decides: at a third of the depth. Measured on that
model, layer 2 of 6 was the best; on npti-demo layer 1 of 4, at every cost."""


@dataclass(frozen=True)
class Selector:
    """What select goes by.

    Args:
        method: ``npti``, ``mean-shift``, ``residual``, ``hybrid`` or ``fitted``; ``auto`` where a measurement is to
            choose.
        min_difference: Smallest delta of a chosen neuron (``npti``, ``residual``, ``fitted``).
        percentile: Which percentile of the pole's own activations is the target.
        min_effect_size: Smallest absolute effect size of a chosen neuron (``mean-shift``, ``hybrid``); None takes a
            share of all neurons.
        share: That share.
        max_neurons: How many neurons a pole has at most, those of the largest delta or effect size; None is no limit.
        layers: First and last layer that neurons and residuals may lie in; None is all.
        residual_layers: Behind which layers a residual is added; None is at a third of the depth, and behind up to four
            layers where it is ``fitted``.
        caps: Whether the opposite pole's neurons are capped (``npti``; the others leave them alone).
        positions: Which tokens the poles steer; None is ``generated``, and where vectors are ``fitted``
            ``last_prompt+generated``.
    """

    method: str = NPTI
    min_difference: float = 0.1
    percentile: float = 95.0
    min_effect_size: float | None = None
    share: float = SHARES[0]
    max_neurons: int | None = None
    layers: tuple[int, int] | None = None
    residual_layers: tuple[int, ...] | None = None
    caps: Caps = "opposite"
    positions: str | None = None

    @property
    def steered_positions(self) -> str:
        """Which tokens the poles steer: of vectors that are fitted those that they are fitted at."""
        return self.positions or (FIRST_TOKEN_TOO if self.method == FITTED else "generated")

    @property
    def by_effect_size(self) -> bool:
        """Whether neurons are chosen by effect size, and not by delta."""
        return self.method in MOVES_BY_MEAN

    def record(self, effect_sizes: NDArray[np.float32]) -> Method:
        """What an adapter records of the method.

        Args:
            effect_sizes: Of the chosen neurons, float32 [chosen].
        """
        if not self.by_effect_size:
            return Method(self.method, self.min_difference, self.percentile)
        least = self.min_effect_size
        if least is None:  # rounded down, so that it holds for all of them
            least = float(np.floor(float(np.abs(effect_sizes).min(initial=np.inf)) * 1e4) / 1e4)
        return Method(self.method, percentile=self.percentile, min_effect_size=least)

    def layer_range(self, num_layers: int) -> range:
        """The layers that neurons and residuals may lie in.

        Raises:
            NptiError: If the model has not so many.
        """
        first, last = self.layers or (0, num_layers - 1)
        if not 0 <= first <= last < num_layers:
            raise NptiError(f"--layers is {first}-{last}; the model has the layers 0 to {num_layers - 1}.")
        return range(first, last + 1)

    def check_needs_no_dose(self) -> None:
        """Refuses the method ``auto``, which is nothing before doses were measured.

        Raises:
            NptiError: If it is that.
        """
        if self.method == AUTO:
            raise NptiError(
                "The method auto is chosen by measuring doses, which --no-calibrate leaves out; leave that out, or "
                f"choose {', '.join(METHODS[:-1])} or {METHODS[-1]}."
            )

    def residual_behind(self, num_layers: int) -> list[int]:
        """The layers that a residual is added behind."""
        if self.residual_layers is not None:
            return list(self.residual_layers)
        within = self.layer_range(num_layers)
        return layers_to_try(within) if self.method == FITTED else [within[len(within) // USUAL_LAYER]]


def ways_to_try(wanted: Selector, num_layers: int, has_stream: bool = True) -> list[list[Selector]]:
    """The ways that calibration tries: one from each list, the best of it at a middling dose.

    ``auto`` tries all at positions ``last_prompt+generated``, which those of one adapter must agree on: what an answer
    begins with decides much of the rest (on npti-demo the residual moved neuroticism by .17 at 1.13 times the
    perplexity so, and by .11 at 1.21 on generated tokens alone).

    ``npti`` is tried with the threshold wanted and twice that, with caps only at the threshold itself (of the paper);
    ``mean-shift`` on a quarter and on half of the neurons unless the number is given; ``residual`` and ``hybrid``
    behind several layers, ``fitted`` behind all of these at once.

    Args:
        wanted: What was asked for.
        num_layers: Of the model.
        has_stream: Whether the statistics hold the residual stream; without it ``auto`` does without these three.

    >>> [[way.residual_layers for way in ways] for ways in ways_to_try(Selector("residual"), 32)]
    [[(4,), (12,), (20,), (28,)]]
    >>> [(way.min_difference, way.caps) for [way] in ways_to_try(Selector(), 32)]
    [(0.1, 'opposite'), (0.1, 'none'), (0.2, 'none')]
    """
    names: tuple[str, ...] = METHODS if wanted.method == AUTO else (wanted.method,)
    if wanted.method == AUTO and not has_stream:
        names = (NPTI, MEAN_SHIFT)
    positions = FIRST_TOKEN_TOO if wanted.method == AUTO else wanted.positions
    ways: list[list[Selector]] = []
    for name in names:
        ways += _WAYS[name](replace(wanted, method=name, positions=positions), num_layers)
    return ways


def layers_to_try(within: Sequence[int]) -> list[int]:
    """At most four layers, spread evenly.

    >>> layers_to_try(range(4)), layers_to_try(range(8, 16)), layers_to_try(range(2))
    ([0, 1, 2, 3], [9, 11, 13, 15], [0, 1])
    """
    places = [(2 * at + 1) * len(within) // (2 * MOST_LAYERS) for at in range(MOST_LAYERS)]
    return [within[at] for at in dict.fromkeys(places)]


def _npti(wanted: Selector, _num_layers: int) -> list[list[Selector]]:
    raised = replace(wanted, min_difference=min(1.0, 2 * wanted.min_difference), caps="none")
    return [[way] for way in dict.fromkeys((wanted, replace(wanted, caps="none"), raised))]


def _mean_shift(wanted: Selector, _num_layers: int) -> list[list[Selector]]:
    if wanted.min_effect_size is not None or wanted.max_neurons is not None:
        return [[wanted]]
    return [[replace(wanted, share=share) for share in SHARES]]


def _behind_layers(wanted: Selector, num_layers: int) -> list[list[Selector]]:
    return [[replace(wanted, residual_layers=(layer,)) for layer in layers_to_try(wanted.layer_range(num_layers))]]


_WAYS: dict[str, Callable[[Selector, int], list[list[Selector]]]] = {
    NPTI: _npti,
    MEAN_SHIFT: _mean_shift,
    **dict.fromkeys((RESIDUAL, HYBRID), _behind_layers),
    FITTED: lambda wanted, _num_layers: [[wanted]],
}
