"""What an adapter is held against and must be made first: the residual difference alone, itself from other seeds.

Both are made from statistics of identification, so this needs them, or the questions and personas to measure again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.records import FITTED, MOVES_BY_MEAN, RESIDUAL, PoleRecord, TraitRecord
from npti_export.evaluation.dose.calibration import calibrate, most_answers
from npti_export.evaluation.dose.trial import with_dose
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.identification.answers import Decoding, Progress
from npti_export.identification.measurement import Measurement
from npti_export.identification.selection import Statistics, run_select, run_selects
from npti_export.identification.selector import FIRST_TOKEN_TOO, Selector, ways_to_try
from npti_export.traits.material import Question

PEERS = Selector(RESIDUAL, positions=FIRST_TOKEN_TOO)


def residual_alone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_model: BaseModel,
    trait: str,
    statistics: Statistics,
    measurement: Measurement,
    held_back: Sequence[Question],
    judge: LocalJudge,
    decoding: Decoding,
    progress: Progress | None = None,
) -> PersonalityAdapter:
    """The difference of the poles' mean residual stream, added behind one layer: what peers do.

    Layer and dose are found for each pole as those of the adapter are, on questions held back; it is added at the last
    token of the prompt too, as the ways of ``--method auto`` are.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        base_model: What an adapter records of it.
        trait: The trait.
        statistics: Of both poles, with the residual stream.
        measurement: What the measurement says of itself.
        held_back: Questions that neither identification nor the evaluation asks.
        judge: Trained on the transcripts of identification.
        decoding: How answers are decoded.
        progress: Told how many more answers are there, of :func:`most_residual_answers` at most.

    Raises:
        NptiError: If the statistics lack the residual stream, or the judge was trained on one of the questions.
    """
    ways = run_selects(trait, statistics, measurement, ways_to_try(PEERS, base_model.num_layers))
    found = calibrate(model, tokenizer, base_model, ways, held_back, judge, decoding, progress)
    return PersonalityAdapter(base_model, {trait: found.trait})


def most_residual_answers(num_layers: int, questions: int) -> int:
    """How many answers :func:`residual_alone` asks for at most."""
    return most_answers(ways_to_try(PEERS, num_layers), questions)


def selector_of(record: PoleRecord) -> Selector:
    """What chose the neurons of a pole, so that they can be chosen again from other statistics.

    >>> from npti_export.adapter.find import bundled_folder
    >>> from npti_export.traits import Pole
    >>> adapter = PersonalityAdapter.from_pretrained(bundled_folder())
    >>> record = adapter.traits["openness"].poles[Pole.HIGH]
    >>> selector_of(record).method == record.method.name
    True
    """
    method = record.method
    return Selector(
        method.name,
        method.min_difference,
        method.percentile,
        method.min_effect_size if method.name in MOVES_BY_MEAN else None,
        residual_layers=None if record.residual is None else tuple(record.residual.layer.tolist()),
        caps=record.caps,
        # Vectors are fitted with the first token, wherever they are added afterwards.
        positions=None if method.name == FITTED else record.positions,
    )


def made_anew(
    like: TraitRecord,
    statistics: Statistics,
    measurement: Measurement,
    fit: Callable[[TraitRecord], TraitRecord],
) -> TraitRecord:
    """A trait from other statistics, each pole by the same method at the same dose.

    Args:
        like: The trait as it is.
        statistics: Of both poles, from other questions or personas.
        measurement: What that measurement says of itself.
        fit: Fits what select made to the answers, where the method does.

    Raises:
        NptiError: If a pole has no neuron by its method, or the statistics lack what it is made of.
    """
    selectors = {pole: selector_of(record) for pole, record in like.poles.items()}
    selected = {
        selector: fit(run_select(like.name, statistics, measurement, selector)) for selector in set(selectors.values())
    }
    poles, made = {}, like.identification
    for pole, record in like.poles.items():
        trait = selected[selectors[pole]]
        anew = with_dose(trait.poles[pole], record.gamma)
        poles[pole] = replace(anew, positions=record.positions, dropout=record.dropout)
        made = trait.identification
    return TraitRecord(like.name, poles, made)
