"""What an adapter says of its traits: method, dose, calibration and where it all came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npti_export.adapter.neurons import NeuronSet
from npti_export.traits import Pole

Caps = Literal["opposite", "none"]


@dataclass(frozen=True)
class Method:
    """How the neurons of a pole were chosen and how their shift is made (paper, section 3 and equation 4).

    Args:
        name: Which rule chose and moves the neurons; ``npti``, the paper's, is the one that this release knows.
        min_difference: Smallest delta of a chosen neuron.
        percentile: Which percentile of the pole's own activations is the target.
        steepness: Of the sigmoid that weighs a neuron by its delta.
        midpoint: Delta at which that weight is one half.

    >>> round(Method().weight(np.array([0.15, 0.5]))[0], 3)
    np.float64(0.5)
    """

    name: str = "npti"
    min_difference: float = 0.1
    percentile: float = 95.0
    steepness: float = 10.0
    midpoint: float = 0.15

    def weight(self, delta: NDArray[Any]) -> NDArray[np.float64]:
        """f(|δ|) of equation 4, float64 of the shape of ``delta``."""
        distance = np.abs(delta.astype(np.float64)) - self.midpoint
        with np.errstate(over="ignore"):  # exp(large) is inf, and 1 / inf the 0 that is meant
            return np.asarray(1.0 / (1.0 + np.exp(-self.steepness * distance)))

    def shift(self, gamma: float, target: NDArray[np.float32], delta: NDArray[np.float32]) -> NDArray[np.float32]:
        """γ · target · f(|δ|), computed in float64 and rounded once, float32 of the shape of ``target``."""
        with np.errstate(over="ignore"):  # what float32 cannot hold is inf, which readers and writers refuse
            return (gamma * target.astype(np.float64) * self.weight(delta)).astype(np.float32)


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


@dataclass(frozen=True)
class Identification:
    """Where the neurons of a trait came from."""

    source: str = "identified"
    questions_sha256: str = ""
    personas_sha256: str = ""
    transcripts: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"high": 0, "low": 0})
    seed: int = 0
    split_half_reliability: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TraitRecord:
    """Both poles of one trait, and how they were identified."""

    name: str
    poles: dict[Pole, PoleRecord]
    identification: Identification = Identification()
