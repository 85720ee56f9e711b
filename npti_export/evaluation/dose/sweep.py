"""The recommended dose of a trait's poles, over the whole range of doses: what `calibrate` writes into an adapter.

`calibration` looks for the dose with few answers while an adapter is made; this measures every dose of the grid, so
that it can also be said where more of it stops to help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from npti_export.adapter.records import TraitRecord
from npti_export.evaluation.compare import rank_correlation, tips_over
from npti_export.evaluation.dose.calibration import (
    TriedWay,
    chosen_ways,
    doses_of,
    halved,
    identification_of,
    reason_of,
    recommended,
    search,
    worth,
)
from npti_export.evaluation.dose.trial import Trial
from npti_export.traits import Pole

Tried = Mapping[Pole, Sequence[TriedWay]]
"""All ways tried at each pole, the one that was taken first."""


@dataclass(frozen=True)
class Searched:
    """What was found for one trait, by which tokens are steered.

    Args:
        trait: Its name.
        by_positions: For each position mode the ways tried, the best pair first.
    """

    trait: str
    by_positions: dict[str, dict[Pole, tuple[TriedWay, ...]]]

    def worth(self, positions: str) -> tuple[float, ...]:
        """How good the best pair is under a position mode; larger is better."""
        taken = (of_pole[0] for of_pole in self.by_positions[positions].values())
        return tuple(map(sum, zip(*map(worth, taken), strict=True)))


@dataclass(frozen=True)
class Swept:
    """The dose of one pole.

    Args:
        way: How it is steered, at every dose of the grid and one between the largest affordable one and the next.
        others: The other ways tried.
        reason: Why it is this way and dose, in a sentence.
        rank_correlation: Spearman's, of dose and effect, dose 0 included; None where nothing varies.
        tips_over: The γ beyond which more has surely less effect; None where none has.
    """

    way: TriedWay
    others: tuple[TriedWay, ...]
    reason: str
    rank_correlation: float | None
    tips_over: float | None


def search_trait(trial: Trial, ways: Sequence[Sequence[TraitRecord]], positions: Sequence[str]) -> Searched:
    """Tries ways to steer a trait under the position mode that they have, and the best of them under others.

    Args:
        trial: Questions and judge.
        ways: As :func:`calibration.search` takes them, all of one position mode.
        positions: Other modes to try.
    """
    tried = search(trial, ways)
    best = chosen_ways(tried)
    first = best[Pole.HIGH].record.positions
    found = {first: {pole: (best[pole], *(way for way in tried[pole] if way is not best[pole])) for pole in Pole}}
    for mode in positions:
        if mode != first:
            found[mode] = {pole: (_under(trial, best[pole], mode),) for pole in Pole}
    return Searched(best[Pole.HIGH].trait.name, found)


def best_positions(searched: Sequence[Searched], others: Sequence[str] = ()) -> str:
    """The position mode of an adapter: one for all poles, or they could not be summed.

    Args:
        searched: The traits, all tried under the same modes.
        others: The modes of traits in the adapter that are left as they are; these are kept where they agree.
    """
    modes = list(searched[0].by_positions)
    if len(set(others)) == 1 and others[0] in modes:
        return others[0]
    return max(modes, key=lambda mode: tuple(map(sum, zip(*(found.worth(mode) for found in searched), strict=True))))


def sweep(trial: Trial, tried: Tried) -> dict[Pole, Swept]:
    """Measures every dose of the ways that were taken.

    Args:
        trial: The questions and judge that they were taken by.
        tried: The ways tried, the one that was taken first.
    """
    found = {}
    for pole, (taken, *others) in tried.items():
        way = _whole(trial, taken)
        effects = [np.array(dose.changes) for dose in way.doses]
        gammas = [0.0, *(dose.gamma for dose in way.doses)]
        found[pole] = Swept(
            way,
            tuple(others),
            reason_of(way, others),
            rank_correlation(gammas, [0.0, *(dose.effect.mean for dose in way.doses)]),
            tips_over(gammas, [np.zeros_like(effects[0]), *effects], 0),
        )
    return found


def most_search_answers(ways: Sequence[Sequence[TraitRecord]], positions: int, questions: int) -> int:
    """How many answers searching a trait asks for at most, the unsteered ones among them.

    Args:
        ways: What is tried.
        positions: How many other position modes.
        questions: How many there are.
    """
    halving = _grid(ways).bit_length()
    each = sum(len(of_list) + halving - 1 for of_list in ways) + positions * halving
    return (1 + 2 * each) * questions


def most_sweep_answers(ways: Sequence[Sequence[TraitRecord]], questions: int) -> int:
    """How many answers :func:`sweep` asks for at most: the doses that halving passed over, and one between two.

    Args:
        ways: What was searched.
        questions: How many there are.
    """
    return 2 * (_grid(ways) - _grid(ways).bit_length() + 1) * questions


def calibrated(found: Mapping[Pole, Swept]) -> TraitRecord:
    """The trait with way, dose, shifts and dose curve of both poles; scores of another dose are left out."""
    high = found[Pole.HIGH].way.trait
    poles = {pole: replace(recommended(swept.way), scores={}) for pole, swept in found.items()}
    return TraitRecord(high.name, poles, identification_of({p: s.way.trait.identification for p, s in found.items()}))


def _grid(ways: Sequence[Sequence[TraitRecord]]) -> int:
    """How many doses are tried of a way."""
    return max(len(doses_of(trait.poles[Pole.HIGH])) for of_list in ways for trait in of_list)


def _under(trial: Trial, way: TriedWay, positions: str) -> TriedWay:
    """The same way under another position mode, at the largest dose that it affords."""
    poles = {pole: replace(record, positions=positions) for pole, record in way.trait.poles.items()}
    trait = replace(way.trait, poles=poles)
    doses = doses_of(way.record)
    return halved(trial, TriedWay(trait, way.pole, (trial.measure(trait, way.pole, doses[len(doses) // 2]),)))


def _whole(trial: Trial, way: TriedWay) -> TriedWay:
    """The way at every dose of its grid, and at one between the largest affordable one and the next."""
    measured = {dose.gamma: dose for dose in way.doses}
    gammas = list(doses_of(way.record))
    for gamma in gammas:
        if gamma not in measured:
            measured[gamma] = trial.measure(way.trait, way.pole, gamma)
    most = max((gamma for gamma in gammas if measured[gamma].affordable), default=None)
    above = [gamma for gamma in gammas if most is not None and gamma > most]
    if most is not None and above:
        between = round(math.sqrt(most * above[0]), 2)
        if between not in measured:
            measured[between] = trial.measure(way.trait, way.pole, between)
    return replace(way, doses=tuple(measured[gamma] for gamma in sorted(measured)))
