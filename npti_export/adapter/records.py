"""What an adapter says of its traits: method, dose, calibration and where it all came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.traits import Pole

Caps = Literal["opposite", "none"]

NPTI, MEAN_SHIFT, RESIDUAL, HYBRID, FITTED = "npti", "mean-shift", "residual", "hybrid", "fitted"
"""The rules that choose and move neurons: the paper's equation 4, the difference of the poles' means on neurons, the
same on the residual stream, both together, and vectors there that were fitted to the pole's answers."""
MOVES_BY_MEAN = (MEAN_SHIFT, HYBRID)
ONLY_RESIDUAL = (RESIDUAL, FITTED)
"""Their neurons are only there to be capped by the opposite pole."""
HAS_RESIDUAL = (*ONLY_RESIDUAL, HYBRID)


@dataclass(frozen=True)
class Method:
    """How the neurons of a pole were chosen and how their shift is made (paper, section 3 and equation 4).

    Args:
        name: Which rule chose and moves the neurons: ``npti``, the paper's, ``mean-shift``, ``residual``,
            ``hybrid`` or ``fitted``.
        min_difference: Smallest delta of a chosen neuron (``npti``, and ``residual`` and ``fitted``, whose neurons are
            only there to be capped by the opposite pole).
        percentile: Which percentile of the pole's own activations is the target.
        steepness: Of the sigmoid that weighs a neuron by its delta (``npti``).
        midpoint: Delta at which that weight is one half (``npti``).
        min_effect_size: Smallest absolute effect size of a chosen neuron (``mean-shift`` and ``hybrid``), else None.

    >>> round(Method().weight(np.array([0.15, 0.5]))[0], 3)
    np.float64(0.5)
    """

    name: str = NPTI
    min_difference: float = 0.1
    percentile: float = 95.0
    steepness: float = 10.0
    midpoint: float = 0.15
    min_effect_size: float | None = None

    def weight(self, delta: NDArray[Any]) -> NDArray[np.float64]:
        """f(|δ|) of equation 4, float64 of the shape of ``delta``."""
        distance = np.abs(delta.astype(np.float64)) - self.midpoint
        with np.errstate(over="ignore"):  # exp(large) is inf, and 1 / inf the 0 that is meant
            return np.asarray(1.0 / (1.0 + np.exp(-self.steepness * distance)))

    def shift(
        self,
        gamma: float,
        target: NDArray[np.float32],
        delta: NDArray[np.float32],
        mean_difference: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What the rule adds to each neuron at strength 1, computed in float64 and rounded once.

        ``npti``: γ · target · f(|δ|); ``mean-shift`` and ``hybrid``: γ · mean difference; the others: 0.

        Args:
            gamma: The dose γ.
            target: Targets, float32 [n].
            delta: Deltas, float32 [n].
            mean_difference: Mean differences, float32 [n]; only where the rule moves by them.

        Returns:
            float32 [n].

        Raises:
            NptiError: If the mean differences are needed and not given.

        >>> third = np.array([0.3], np.float32)
        >>> Method().shift(1.4, third, third), Method("mean-shift").shift(2.0, third, third, third)
        (array([0.34338132], dtype=float32), array([0.6], dtype=float32))
        """
        if self.name in ONLY_RESIDUAL:
            return np.zeros_like(target)
        if self.name in MOVES_BY_MEAN:
            if mean_difference is None:
                raise NptiError(f"The method {self.name} moves neurons by their mean difference, which is not given.")
            moved = mean_difference.astype(np.float64)
        else:
            moved = target.astype(np.float64) * self.weight(delta)
        with np.errstate(over="ignore"):  # what float32 cannot hold is inf, which readers and writers refuse
            return (gamma * moved).astype(np.float32)


@dataclass(frozen=True)
class DosePoint:
    """One point of a dose curve: what a γ did on the questions held back for calibration.

    Args:
        gamma: The dose.
        effect: Mean judge score minus that of the unsteered model, in the direction of the pole, on a scale of 0 to 1.
        fluency: Perplexity ratio of the answers under the unsteered model.
    """

    gamma: float
    effect: float
    fluency: float


@dataclass(frozen=True)
class PoleRecord:
    """The steering towards one pole of a trait.

    Args:
        neurons: Which neurons are moved, and by how much.
        gamma: The dose that strength 1.0 stands for.
        calibrated: Whether the dose was measured on this model.
        caps: ``opposite``: the opposite pole's neurons are capped; ``none``: they are left alone.
        positions: Which tokens are steered unless the loader says otherwise.
        dropout: Share of shifts that are dropped at random at every layer and step (0.1 in the published scripts).
        method: How neurons and shift were made.
        dose_curve: What was measured to find the dose.
        scores: What an evaluation measured, by its name.
        residual: What ``residual``, ``hybrid`` and ``fitted`` add to the residual stream, else None.
    """

    neurons: NeuronSet
    gamma: float
    method: Method = Method()
    calibrated: bool = False
    caps: Caps = "opposite"
    positions: str = "generated"
    dropout: float = 0.0
    dose_curve: tuple[DosePoint, ...] = ()
    scores: dict[str, Any] = field(default_factory=dict)
    residual: ResidualShift | None = None


@dataclass(frozen=True)
class Identification:
    """Where the neurons of a trait came from, and how sure they are.

    Args:
        source: ``identified``, or ``imported`` from somebody else's files.
        questions_sha256: Over the questions that were asked.
        personas_sha256: Over the personas.
        transcripts: Number of answers, both poles together.
        tokens: Number of generated tokens counted, by pole.
        seed: Decided the order of the questions and which persona got which.
        split_half_reliability: Correlation over all neurons of delta from two halves of the questions, corrected to
            full length; None where it is not known, as the two below.
        selection_overlap: By pole, the share of the neurons chosen by either half that both chose.
        delta_margin: By pole, half the width of delta's 95 % interval over answers, median over the chosen neurons.
        versions: Of the libraries that measured.
    """

    source: str = "identified"
    questions_sha256: str = ""
    personas_sha256: str = ""
    transcripts: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"high": 0, "low": 0})
    seed: int = 0
    split_half_reliability: float | None = None
    selection_overlap: dict[str, float] | None = None
    delta_margin: dict[str, float | None] | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TraitRecord:
    """Both poles of one trait, and how they were identified."""

    name: str
    poles: dict[Pole, PoleRecord]
    identification: Identification = Identification()
