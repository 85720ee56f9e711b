"""How alike a selection of ours and the published one are, from the folders that the two commands wrote."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from published_identification import BINS, STEP, Counts, select_published

from npti_export.identification.elicit import read_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.identification.reliability import jaccard
from npti_export.identification.select import choose, contrast_of
from npti_export.identification.selection import read_measured, run_selects
from npti_export.identification.selector import Selector, ways_to_try
from npti_export.traits import Pole

TIMES = 5
"""So often the choice of neurons is timed by itself."""


@dataclass(frozen=True)
class Alike:
    """How alike a selection of ours and the published one are at one pole, both by the paper's thresholds.

    Args:
        way: Which of ours.
        pole: The pole.
        answers: How many answers it has.
        published_answers: How many the published way has.
        same_answers: How many of them are the same, to the token.
        neurons: How many are selected.
        published_neurons: How many by the published way.
        overlap: Of the neurons that either selects, the share that both do.
        correlation: Of delta over all neurons.
        difference: Of delta, the largest over all neurons.
        beyond: How many of ours have a target above 3, where the published histogram ends.
    """

    way: str
    pole: str
    answers: int
    published_answers: int
    same_answers: int
    neurons: int
    published_neurons: int
    overlap: float
    correlation: float
    difference: float
    beyond: int


def compared(way: str, trait: str, ours: Path, published: Path) -> list[Alike]:
    """How alike the selections are that lie in two folders, at either pole."""
    counted, _, base_model = read_measured(TraitFiles(ours, trait))
    published_counts = {pole: Counts.read(published, pole) for pole in Pole}
    widths = tuple(layer.total for layer in base_model.neurons_per_layer)
    answers, published_answers = (
        {(t.pole, t.question, t.persona): t.token_ids for t in read_transcripts(TraitFiles(folder, trait).transcripts)}
        for folder in (ours, published)
    )
    rows = []
    for pole in Pole:
        contrast = contrast_of(counted[pole], counted[pole.opposite], Selector.percentile)
        chosen = choose(Selector(), widths, contrast.delta, contrast.target > 0, contrast.effect_size)
        other, delta, _ = select_published(published_counts[pole], published_counts[pole.opposite], widths)
        rows.append(
            Alike(
                way,
                str(pole),
                sum(key[0] is pole for key in answers),
                sum(key[0] is pole for key in published_answers),
                sum(key[0] is pole and published_answers.get(key) == answers[key] for key in answers),
                len(chosen),
                len(other),
                jaccard(chosen, other),
                float(np.corrcoef(contrast.delta, delta)[0, 1]),
                float(np.abs(contrast.delta - delta).max()),
                int((contrast.target[chosen] > BINS * STEP).sum()),
            )
        )
    return rows


def choosing_took(trait: str, ours: Path, published: Path) -> dict[str, float]:
    """Seconds that choosing the neurons of both poles takes by itself, from what lies counted in two folders, median.

    Ours chooses for each of the ways that the dose is then tried with.
    """
    counted, measured, base_model = read_measured(TraitFiles(ours, trait))
    published_counts = {pole: Counts.read(published, pole) for pole in Pole}
    widths = tuple(layer.total for layer in base_model.neurons_per_layer)

    def choose_ours() -> None:
        run_selects(trait, counted, measured, ways_to_try(Selector(), base_model.num_layers))

    def choose_published() -> None:
        for pole in Pole:
            select_published(published_counts[pole], published_counts[pole.opposite], widths)

    took = {}
    for name, chooses in (("ours", choose_ours), ("published", choose_published)):
        seconds = []
        for _ in range(TIMES):
            began = time.perf_counter()
            chooses()
            seconds.append(time.perf_counter() - began)
        took[name] = statistics.median(seconds)
    return took
