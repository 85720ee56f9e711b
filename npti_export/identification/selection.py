"""Select as a stage: the files of statistics of a trait → the trait of an adapter. Needs no model, and no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from npti_export.adapter.adapter import PersonalityAdapter, read_base_model
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import FITTED, MOVES_BY_MEAN, Identification, TraitRecord
from npti_export.errors import NptiError
from npti_export.identification.files import TraitFiles, file_sha256
from npti_export.identification.measurement import Measurement, read_measurement
from npti_export.identification.reliability import reliability
from npti_export.identification.select import Contrast, contrast_of, select
from npti_export.identification.selector import AUTO, Selector
from npti_export.identification.statistics import NeuronStatistics
from npti_export.identification.statistics_file import read_statistics
from npti_export.traits import Pole

Statistics = dict[Pole, NeuronStatistics]
"""Of both poles of a trait."""


def select_into(folder: Path, traits: Sequence[str], selector: Selector) -> PersonalityAdapter:
    """Chooses neurons from the statistics beside an adapter and writes them into it, at a dose that was not measured.

    Args:
        folder: The adapter's folder.
        traits: Which traits.
        selector: Method and thresholds.

    Returns:
        The adapter as it stands in the folder.

    Raises:
        NptiError: If statistics are not there or broken, a pole has no neuron, the method is to be found by
            measurement, or the folder cannot be written.
    """
    if selector.method in (AUTO, FITTED):
        raise NptiError(
            f"The method {selector.method} is found by running the model, which select does not; identify does, or "
            "choose npti, mean-shift, residual or hybrid."
        )
    records, models = [], []
    for trait in traits:
        statistics, measurement, base_model = read_measured(TraitFiles(folder, trait))
        records.append(run_select(trait, statistics, measurement, selector))
        models.append(base_model)
    if any(model != models[0] for model in models):
        raise NptiError(f"The statistics in {folder} are of several models; measure all traits with one.")
    open_adapter(folder, models[0], traits)
    return write_traits(folder, models[0], traits, records)


def write_traits(
    folder: Path, base_model: BaseModel, names: Sequence[str], records: Sequence[TraitRecord]
) -> PersonalityAdapter:
    """Writes traits into the adapter that a folder holds now: what another run has put there meanwhile is kept.

    Args:
        folder: The adapter's folder.
        base_model: The model that it must be of.
        names: The traits of this run; one of these may be broken, and is left out then.
        records: Those that are written now.

    Returns:
        The adapter as it stands in the folder.

    Raises:
        NptiError: If the folder holds the adapter of another base model, is broken in another trait, or cannot be
            written.
    """
    adapter = adapter_in(folder, base_model, names)
    for record in records:
        adapter = adapter.with_trait(record)
    adapter.save_pretrained(folder)
    return adapter


def run_select(trait: str, statistics: Statistics, measurement: Measurement, selector: Selector) -> TraitRecord:
    """Chooses the neurons of both poles, at a dose that is still to be found.

    Args:
        trait: The trait.
        statistics: Of both poles.
        measurement: What the measurement says of itself.
        selector: Method and thresholds.

    Raises:
        NptiError: If a pole has no neuron, or the statistics lack what the method is made of.
    """
    return run_selects(trait, statistics, measurement, [[selector]])[0][0]


def run_selects(
    trait: str, statistics: Statistics, measurement: Measurement, ways: Sequence[Sequence[Selector]]
) -> list[list[TraitRecord]]:
    """The same for several selectors, in their lists, comparing the poles but once.

    Args:
        trait: The trait.
        statistics: Of both poles.
        measurement: What the measurement says of itself.
        ways: Methods and thresholds, all of one percentile.

    Raises:
        NptiError: If a pole has no neuron, or the statistics lack what a method is made of.
    """
    percentile = ways[0][0].percentile
    contrasts = {pole: contrast_of(statistics[pole], statistics[pole.opposite], percentile) for pole in Pole}
    return [[_selected(trait, statistics, measurement, way, contrasts) for way in of_list] for of_list in ways]


def _selected(
    trait: str,
    statistics: Statistics,
    measurement: Measurement,
    selector: Selector,
    contrasts: Mapping[Pole, Contrast],
) -> TraitRecord:
    poles = {pole: select(contrasts[pole], selector) for pole in Pole}
    for pole, record in poles.items():
        if not len(record.neurons):
            raise NptiError(_nothing_found(trait, pole, selector))
    sure = reliability(statistics, selector, measurement.curve[-1].questions)
    identification = Identification(
        questions_sha256=measurement.source.questions_sha256,
        personas_sha256=measurement.source.personas_sha256,
        transcripts=measurement.transcripts,
        tokens={str(pole): of_pole.whole.tokens for pole, of_pole in statistics.items()},
        seed=measurement.source.seed,
        split_half_reliability=sure.split_half,
        selection_overlap=sure.overlap,
        delta_margin=sure.margin,
        versions=measurement.versions,
    )
    return TraitRecord(trait, poles, identification)


def _nothing_found(trait: str, pole: Pole, selector: Selector) -> str:
    """Why there is nothing to steer with."""
    if selector.min_effect_size is not None and selector.method in MOVES_BY_MEAN:
        return (
            f"{trait}: no neuron's effect size is {selector.min_effect_size:g} or more at the {pole} pole; lower "
            "--min-effect-size."
        )
    return (
        f"{trait}: no neuron fires more at the {pole} pole, so the personas made no difference; use other personas or "
        "a larger chat model."
    )


def read_measured(files: TraitFiles) -> tuple[Statistics, Measurement, BaseModel]:
    """The statistics that lie beside an adapter, what the measurement says of itself, and the model they are of.

    Raises:
        NptiError: If they are not there, broken, or not of one measurement.
    """
    measurement = read_measurement(files.measurement)
    statistics: Statistics = {}
    models = []
    for pole in Pole:
        path = files.statistics(pole)
        statistics[pole], model = read_statistics(path, files.trait, pole)
        models.append(model)
        if file_sha256(path) != measurement.statistics_sha256.get(pole):
            raise NptiError(f"{path} is not the file that {files.measurement.name} names; measure again.")
    if not measurement.curve or models[0] != models[1]:
        raise NptiError(f"{files.measurement} and the statistics beside it are not of one measurement; measure again.")
    return statistics, measurement, models[0]


def open_adapter(folder: Path, base_model: BaseModel, names: Sequence[str]) -> PersonalityAdapter:
    """The adapter that a folder holds, or an empty one; what a killed run left half-renamed is put right.

    Args:
        folder: The adapter's folder.
        base_model: The model that it must be of.
        names: The traits that are about to be written; one of these may be broken, and is left out then.

    Raises:
        NptiError: If it holds the adapter of another base model, is broken in another trait, or cannot be written.
    """
    adapter = adapter_in(folder, base_model, names)
    probe = folder / ".write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
        for left in folder.glob(".new-*"):  # files that were written beside their place when a run was killed
            shutil.rmtree(left)
    except OSError as error:
        raise NptiError(f"{folder} cannot be written ({error.strerror}); choose another --output.") from None
    return adapter


def adapter_in(folder: Path, base_model: BaseModel, names: Sequence[str]) -> PersonalityAdapter:
    """The adapter that a folder holds, or an empty one; the folder is left as it is.

    Args:
        folder: The adapter's folder.
        base_model: The model that it must be of.
        names: The traits that are about to be written; one of these may be broken, and is left out then.

    Raises:
        NptiError: If it holds the adapter of another base model, or is broken in another trait.
    """
    if not (folder / "config.json").exists():
        return PersonalityAdapter(base_model, {})
    there = read_base_model(folder)
    joined = there.joined(base_model)
    if joined is None:
        raise NptiError(
            f"{folder} holds the adapter of another base model ({_named(there)}) than this one "
            f"({_named(base_model)}); choose another --output, or remove that adapter."
        )
    return replace(_without_broken(folder, names), base_model=joined)


def _without_broken(folder: Path, names: Sequence[str]) -> PersonalityAdapter:
    """The adapter in a folder; traits that are about to be written anew may be broken and are left out then."""
    try:
        return PersonalityAdapter.from_pretrained(folder)
    except NptiError:
        config: Mapping[str, object] = json.loads((folder / "config.json").read_bytes())["traits"]
        others = [name for name in config if name not in names]
        if len(others) == len(config):
            raise
        return PersonalityAdapter.from_pretrained(folder, traits=others)


def _named(model: BaseModel) -> str:
    return f"{model.id}, {model.num_neurons} neurons, weights {(model.fingerprint or 'unknown')[:12]}"
