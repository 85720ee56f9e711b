"""What must hold within one trait of an adapter, whether it is about to be written or was just read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import HAS_RESIDUAL, MOVES_BY_MEAN, NPTI, ONLY_RESIDUAL, PoleRecord, TraitRecord
from npti_export.errors import NptiError
from npti_export.traits import Pole

RELATIVE = 1e-6
"""How far a shift may lie from what the method says: float32 rounds by 6e-8, exp differs by less."""
ABSOLUTE = 2.0**-126
"""The smallest float32 of full precision."""


def check_trait(trait: TraitRecord, model: BaseModel, where: str) -> None:
    """Holds both poles of a trait, and the two against one another, to every invariant of the format.

    Args:
        trait: The trait.
        model: The base model that its neurons must lie in.
        where: What the name of a pole is put behind in messages.

    Raises:
        NptiError: With what was found and what was expected.
    """
    if set(trait.poles) != set(Pole):
        raise NptiError(f"{trait.name} has the poles {sorted(map(str, trait.poles))}, expected high and low.")
    for pole, record in trait.poles.items():
        _check_pole(record, model, f"{where}{pole}")
        opposite = trait.poles[pole.opposite]
        # The soft cap, target · max(0, 1 − s) / s, fades out with the strength s only where the target is above 0.
        if record.caps == "opposite" and not (opposite.neurons.target > 0).all():
            raise NptiError(f"{where}{pole.opposite}: a target is not above 0, and {pole} caps these neurons.")


def check_hidden(traits: Mapping[str, TraitRecord], where: str) -> None:
    """Refuses dense parts of different widths: the residual stream of a model has one.

    Args:
        traits: The traits of one adapter.
        where: The adapter, for messages.
    """
    records = [record for trait in traits.values() for record in trait.poles.values()]
    widths = sorted({record.residual.hidden for record in records if record.residual is not None})
    if len(widths) > 1:
        raise NptiError(f"{where}: its residuals are {widths[0]} and {widths[1]} wide; a model has one such width.")


def _check_pole(record: PoleRecord, model: BaseModel, where: str) -> None:
    neurons, method = record.neurons, record.method
    neurons.check(model, where)
    if method.name == NPTI and not (neurons.target > 0).all():
        raise NptiError(f"{where}: a target is not above 0.")
    if method.name == NPTI and not (neurons.delta > 0).all():
        raise NptiError(f"{where}: a delta is not above 0.")
    if method.name in MOVES_BY_MEAN:
        _check_effect(record, where)
    expected = method.shift(record.gamma, neurons.target, neurons.delta, neurons.mean_difference)
    if not np.allclose(neurons.shift, expected, rtol=RELATIVE, atol=ABSOLUTE):
        rules = {NPTI: "gamma · target · f(delta)"} | dict.fromkeys(ONLY_RESIDUAL, "0")
        rule = rules.get(method.name, "gamma · mean difference")
        raise NptiError(f"{where}: a shift is not {rule} with the gamma of {record.gamma:g} given.")
    if (record.residual is not None) != (method.name in HAS_RESIDUAL):
        there = "missing" if record.residual is None else "there"
        raise NptiError(f"{where}: the tensor residual is {there}, and the method is {method.name}.")
    if record.residual is not None:
        record.residual.check(model, where)


def _check_effect(record: PoleRecord, where: str) -> None:
    """What ``mean-shift`` and ``hybrid`` are made of must be there, and as large as the method says."""
    neurons, method = record.neurons, record.method
    for name in ("mean_difference", "effect_size"):
        if getattr(neurons, name) is None:
            raise NptiError(f"{where}: the tensor {name} is missing, which the method {method.name} is made of.")
    least = method.min_effect_size
    if least is None:
        raise NptiError(f"{where}: the method {method.name} has no min_effect_size, which it is made of.")
    # As float32, as the effect sizes stand in the file.
    if neurons.effect_size is not None and not (np.abs(neurons.effect_size) >= np.float32(least)).all():
        raise NptiError(f"{where}: an effect size lies below the method's min_effect_size of {least:g}.")
