"""``identify``: the whole way from questions and personas to a calibrated adapter on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import default_adapter_folder
from npti_export.adapter.records import TraitRecord
from npti_export.errors import NptiError
from npti_export.evaluation.dose.calibration import (
    DOSES,
    DOSES_BY_MEAN,
    Calibration,
    calibrate,
    left_uncalibrated,
    most_answers,
)
from npti_export.evaluation.dose.calibration_file import read_done, write_done
from npti_export.evaluation.dose.trial import MAX_FLUENCY
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING, Stage, silent
from npti_export.identification.answer_faults import AnswerFaults
from npti_export.identification.answers import Decoding
from npti_export.identification.elicit import IDENTIFICATION_DECODING, Transcript
from npti_export.identification.endpoint import Endpoint
from npti_export.identification.files import TraitFiles, digest, file_sha256
from npti_export.identification.fit import EPOCHS, RATE, ROWS, fit_ways, most_fitted
from npti_export.identification.given import read_given
from npti_export.identification.measurement import Measurement
from npti_export.identification.processes import first_does
from npti_export.identification.questions import HELD_BACK as HELD_BACK
from npti_export.identification.questions import MAX_QUESTIONS, Material
from npti_export.identification.questions import split_questions as split_questions
from npti_export.identification.selection import open_adapter, run_selects, write_traits
from npti_export.identification.selector import Selector, ways_to_try
from npti_export.identification.stages import RELIABILITY, run_elicit_and_measure, run_given_and_measure
from npti_export.identification.statistics import MIN_EXPERT_TOKENS
from npti_export.identification.work import Work
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import TRAIT_NAME, Pole, trait_named
from npti_export.traits.material import Persona, Question, shipped_personas, shipped_questions

PAPER = Selector()
"""The paper's method and thresholds."""
POOR_AUC = 0.7
"""Below this the personas did not take: the judge can hardly tell the poles' answers apart."""
MANY_FAULTS = 0.2
"""Share of a pole's answers that are empty, refusals or repeat themselves from which on the user is told of them."""
NAMED_EXPERTS = 8
"""How many of the experts that were left out a message names."""


@dataclass(frozen=True)
class Identified:
    """What ``identify`` made.

    Args:
        adapter: The adapter as it stands in the folder, other traits that were there included.
        folder: Where it was written.
        auc: How well the local judge told the poles' answers apart, cross-validated, by trait.
        measurements: What was measured, by trait: how sure it is, how many answers say little.
        reasons: Why each pole is steered as it is, by trait.
    """

    adapter: PersonalityAdapter
    folder: Path
    auc: dict[str, float]
    measurements: dict[str, Measurement]
    reasons: dict[str, dict[Pole, str]]


def identify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traits: str | Sequence[str],
    output: str | os.PathLike[str] | None = None,
    *,
    questions: Callable[[str], list[Question]] | None = None,
    personas: Callable[[str], list[Persona]] | None = None,
    max_questions: int = MAX_QUESTIONS,
    reliability: float = RELIABILITY,
    selector: Selector = PAPER,
    calibrated: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    endpoint: Endpoint | None = None,
    transcripts: Path | None = None,
    stage: Stage | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Identified:
    """Finds the neurons of traits in a chat model, finds their dose, and writes the adapter.

    Elicits answers in character block by block, measures every neuron on the generated tokens until two halves of the
    answers agree, selects those that fire more at one pole (paper, section 3) or differ otherwise, and finds for each
    pole, on questions held back, γ and the best of the ways that the method allows. Transcripts, statistics and what
    was tried are kept beside the adapter; a run that was broken off, even killed, goes on with what is there. The same
    inputs give the same bytes.

    Args:
        model: The chat model.
        tokenizer: Its tokenizer.
        traits: One trait or several.
        output: The adapter's folder; None is ``adapters/<base model>``. Other traits of the same base model that it
            holds are kept.
        questions: Gives the identification questions of a trait; None takes the shipped ones.
        personas: Gives the personas of a trait; None takes the shipped ones.
        max_questions: How many questions are asked at each pole at most; 30 more are held back for the dose.
        reliability: Split-half reliability of delta at which no more are asked; 1 asks all.
        selector: Method and thresholds by which neurons are chosen; the method ``auto`` tries them all.
        calibrated: Whether the dose is found. Without it each pole stands at the γ that its method starts from (the
            paper's 1.4 of ``npti``), marked as not calibrated; a later run finds it without asking anew in character.
        batch_size: Rows of one forward or ``generate`` call.
        seed: Decides the order of the questions and which persona gets which.
        endpoint: A server of the same model that answers in its place.
        transcripts: JSON lines of answers that exist (:func:`~npti_export.identification.given.read_given`): all of
            them are measured, nothing is asked but what finds the dose, and no persona is needed.
        stage: Shows progress.
        warn: Told what the user should know.

    Returns:
        The adapter, its folder, how well the personas took, and why each pole is steered as it is.

    Raises:
        NptiError: If the model is not understood, there are too few questions, the folder holds another base model's
            adapter or cannot be written, or the method is ``auto`` and no dose is to be found.
    """
    names = [traits] if isinstance(traits, str) else list(dict.fromkeys(traits))
    stage = stage or silent
    # What would fail late is refused before any work: the method, the model, the material of every trait, the folder.
    if not calibrated:
        selector.check_needs_no_dose()
    if transcripts is None:
        given: dict[str, list[Transcript]] = {}
        material = plan_traits(names, questions, personas, max_questions, seed)
    else:
        given = {name: read_given(transcripts, name, model, tokenizer) for name in names}
        material = plan_doses(given, questions, seed) if calibrated else plan_nothing(given, seed)
    work = work_with(model, tokenizer, batch_size, endpoint)
    selector.layer_range(work.base_model.num_layers)
    folder = Path(output) if output is not None else default_adapter_folder(work.base_model.id)
    adapter = first_does(lambda: open_adapter(folder, work.base_model, names))
    auc, measurements, reasons = {}, {}, {}
    for name, planned in material.items():
        files = TraitFiles(folder, name)
        if name in given:
            with stage(f"{name}: measure answers", len(given[name])) as progress:
                answers, statistics, measured = run_given_and_measure(work, files, given[name], progress)
        else:
            with stage(f"{name}: ask and measure answers in character", 2 * len(planned.planned)) as progress:
                answers, statistics, measured = run_elicit_and_measure(work, files, planned, reliability, progress)
        judge = LocalJudge.train(answers)
        auc[name], measurements[name] = judge.auc, measured
        warn_of_answers(name, judge.auc, measured, warn)
        if calibrated:
            has_stream = all(of_pole.stream is not None for of_pole in statistics.values())
            tried = ways_to_try(selector, work.base_model.num_layers, has_stream)
            budget: tuple[object, ...] = (DOSES, DOSES_BY_MEAN, MAX_FLUENCY, EPOCHS, ROWS, RATE)
        else:
            tried, budget = [[selector]], (EPOCHS, ROWS, RATE)
        ways = run_selects(name, statistics, measured, tried)
        decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
        made_with = digest(work.decides, file_sha256(files.measurement), selector, planned.held_back, decoding, budget)
        done = first_does(partial(read_done, files, adapter, made_with))
        if done is None:
            if steps := most_fitted(ways, len(answers)):
                with stage(f"{name}: fit vectors to the answers", steps) as progress:
                    ways = fit_ways(model, tokenizer, ways, answers, batch_size, progress, warn)
            if calibrated:
                calibration = _find_dose(work, ways, planned.held_back, judge, decoding, stage)
            else:
                calibration = left_uncalibrated(ways[0][0])
            adapter = first_does(partial(write_traits, folder, work.base_model, names, [calibration.trait]))
            done = first_does(partial(write_done, files, made_with, calibration))
        reasons[name] = done
    warn_of_positions(adapter, warn)
    return Identified(adapter, folder, auc, measurements, reasons)


def _find_dose(
    work: Work,
    ways: Sequence[Sequence[TraitRecord]],
    held_back: Sequence[Question],
    judge: LocalJudge,
    decoding: Decoding,
    stage: Stage,
) -> Calibration:
    """Calibrates a trait, as a stage that shows its progress."""
    with stage(f"{ways[0][0].name}: find the dose", most_answers(ways, len(held_back))) as progress:
        return calibrate(work.model, work.tokenizer, work.base_model, ways, held_back, judge, decoding, progress)


def plan_traits(
    names: Sequence[str],
    questions: Callable[[str], list[Question]] | None = None,
    personas: Callable[[str], list[Persona]] | None = None,
    max_questions: int = MAX_QUESTIONS,
    seed: int = 0,
) -> dict[str, Material]:
    """What each trait is identified with, by name.

    Args:
        names: The traits.
        questions: Gives the identification questions of a trait; None takes the shipped ones.
        personas: Gives the personas of a trait; None takes the shipped ones.
        max_questions: How many questions are asked at each pole at most.
        seed: Decides the order of the questions and which persona gets which.

    Raises:
        NptiError: If a name is none, there are too few questions, or a pole has no persona.
    """
    _check_names(names)
    return {
        name: Material.of((questions or _shipped)(name), (personas or _shipped_personas)(name), max_questions, seed)
        for name in names
    }


def plan_doses(
    given: Mapping[str, Sequence[Transcript]], questions: Callable[[str], list[Question]] | None = None, seed: int = 0
) -> dict[str, Material]:
    """What the dose of each trait is found with where answers exist, by name.

    Args:
        given: The answers of each trait.
        questions: Gives the questions of a trait; None takes the shipped ones.
        seed: Decides which are taken.

    Raises:
        NptiError: If a name is none, or too few questions are left that none of the answers is to.
    """
    _check_names(list(given))
    return {
        name: Material.beside((answer.question for answer in answers), (questions or _shipped)(name), seed)
        for name, answers in given.items()
    }


def plan_nothing(given: Mapping[str, Sequence[Transcript]], seed: int = 0) -> dict[str, Material]:
    """No question at all, where answers exist and no dose is to be found, by the traits' names.

    Raises:
        NptiError: If a name is none.
    """
    _check_names(list(given))
    return dict.fromkeys(given, Material([], [], "", "", seed))


def work_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    endpoint: Endpoint | None = None,
) -> Work:
    """What the stages work with, from a model, and a server of the same one where that is to answer.

    Raises:
        NptiError: If the model is not understood.
    """
    sites = find_sites(model)
    decoding = replace(IDENTIFICATION_DECODING, batch_size=batch_size)
    return Work(model, tokenizer, sites, describe_base_model(model, sites), decoding, endpoint)


def transcripts_file(folder: Path, trait: str) -> Path:
    """Where the transcripts of a trait lie beside an adapter."""
    return TraitFiles(folder, trait).transcripts


def warn_of_answers(name: str, auc: float, measured: Measurement, warn: Callable[[str], None]) -> None:
    """Says where the personas did not take, where many answers say little, and which experts had too few tokens.

    Args:
        name: The trait.
        auc: How well the local judge told the poles' answers apart.
        measured: Holds the counts of answers that say little, and the experts that were left out.
        warn: Told what the user should know.
    """
    counts = "; ".join(f"{pole} pole: {faults}" for pole, faults in measured.answers.items())
    if auc < POOR_AUC:
        warn(
            f"{name}: the personas' answers can hardly be told apart (AUC {auc:.2f}, expected {POOR_AUC} or more; "
            f"{counts}), so the neurons found may mean little; a larger chat model plays them better."
        )
    elif any(map(_many, measured.answers.values())):
        warn(f"{name}: many answers say little ({counts}), which blurs what the neurons found mean.")
    if few := measured.experts_left_out:
        named = ", ".join(f"{layer}:{expert}" for layer, expert in few[:NAMED_EXPERTS])
        more = f" … ({name}.json beside the statistics lists them all)" if len(few) > NAMED_EXPERTS else ""
        warn(
            f"{name}: {len(few)} experts had fewer than {MIN_EXPERT_TOKENS} tokens at a pole, so their neurons were "
            f"left out (layer:expert {named}{more}); more questions reach more of them."
        )


def warn_of_positions(adapter: PersonalityAdapter, warn: Callable[[str], None]) -> None:
    """Says so where poles of an adapter steer at other positions, which are not steered together as they stand."""
    of_poles = {
        f"{name}{pole.sign}": pole_of.positions
        for name, trait in adapter.traits.items()
        for pole, pole_of in trait.poles.items()
    }
    if len(set(of_poles.values())) > 1:
        named = "; ".join(
            f"{positions}: {', '.join(name for name, its in of_poles.items() if its == positions)}"
            for positions in dict.fromkeys(of_poles.values())
        )
        warn(
            f"The poles of this adapter steer at different positions ({named}), so two of either kind are only steered "
            "together with positions=… given to load_personality; identify all by one --method to have them agree."
        )


def _many(faults: AnswerFaults) -> bool:
    return max(faults.empty, faults.refusing, faults.repeating) >= MANY_FAULTS * faults.answers


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not TRAIT_NAME.fullmatch(name):
            raise NptiError(f"{name!r} is no name of a trait; small letters, digits and _ are expected.")


def _shipped_personas(trait: str) -> list[Persona]:
    return shipped_personas(trait_named(trait).name)


def _shipped(trait: str) -> list[Question]:
    return shipped_questions(trait_named(trait).name, "identification")
