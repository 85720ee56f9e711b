"""``identify``: the whole way from questions and personas to a calibrated adapter on disk."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import npti_export
from npti_export.adapter.adapter import PersonalityAdapter, read_base_model
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.find import default_adapter_folder
from npti_export.adapter.records import Identification, Method, PoleRecord, TraitRecord
from npti_export.errors import NptiError
from npti_export.evaluation.calibration import DOSES, calibrate
from npti_export.evaluation.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Progress
from npti_export.identification.elicit import (
    IDENTIFICATION_DECODING,
    Transcript,
    elicit,
    plan,
    write_transcripts,
)
from npti_export.identification.measure import measure
from npti_export.identification.select import Halves, select, split_half_reliability
from npti_export.steering.sites import Site, describe_base_model, find_sites
from npti_export.traits import Pole
from npti_export.traits.material import (
    Persona,
    Question,
    material_sha256,
    shipped_personas,
    shipped_questions,
)

MAX_QUESTIONS = 100
"""Questions a pole unless the caller says otherwise. Measured on a 5.9 M-parameter chat model against 300 questions:
delta over all neurons correlates .975 at 10 questions, .993 at 30 and .998 at 100."""
HELD_BACK = 20
"""Questions kept from identification for finding the dose."""
START_GAMMA = 1.4
"""The paper's dose; calibration replaces it."""
POOR_AUC = 0.7
"""Below this the personas did not take: the judge can hardly tell the poles' answers apart."""

Stage = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a stage of so many steps and gives the function that is told of steps done."""


@dataclass(frozen=True)
class Identified:
    """What ``identify`` made.

    Args:
        adapter: The adapter as it stands in the folder, other traits that were there included.
        folder: Where it was written.
        auc: How well the local judge told the poles' answers apart, cross-validated, by trait.
    """

    adapter: PersonalityAdapter
    folder: Path
    auc: dict[str, float]


def identify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traits: str | Sequence[str],
    output: str | os.PathLike[str] | None = None,
    *,
    questions: Callable[[str], list[Question]] | None = None,
    personas: Callable[[str], list[Persona]] | None = None,
    max_questions: int = MAX_QUESTIONS,
    batch_size: int = 32,
    seed: int = 0,
    stage: Stage | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Identified:
    """Finds the neurons of traits in a chat model, finds their dose, and writes the adapter.

    Elicits answers in character, measures every neuron on the generated tokens, selects those that fire more at one
    pole (paper, section 3), and calibrates γ of each pole on questions held back. Transcripts are kept beside the
    adapter; a run that was broken off goes on with those it has. The same inputs give the same bytes.

    Args:
        model: The chat model.
        tokenizer: Its tokenizer.
        traits: One trait or several.
        output: The adapter's folder; None is ``adapters/<base model>``. Other traits of the same base model that it
            holds are kept.
        questions: Gives the identification questions of a trait; None takes the shipped ones.
        personas: Gives the personas of a trait; None takes the shipped ones.
        max_questions: How many questions are asked at each pole; 20 more are held back for the dose.
        batch_size: Rows of one forward or ``generate`` call.
        seed: Decides the order of the questions and which persona gets which.
        stage: Shows progress.
        warn: Told what the user should know.

    Returns:
        The adapter, its folder, and how well the personas took.

    Raises:
        NptiError: If the model is not understood, there are too few questions, or the folder holds another base
            model's adapter or cannot be written.
    """
    names = [traits] if isinstance(traits, str) else list(traits)
    stage = stage or _silent
    sites = find_sites(model)
    base_model = describe_base_model(model, sites)
    folder = Path(output) if output is not None else default_adapter_folder(base_model.id)
    adapter = _adapter_in(folder, base_model)
    auc = {}
    for name in names:
        asked, held_back = split_questions((questions or _shipped)(name), max_questions, seed)
        known = (personas or shipped_personas)(name)
        transcripts = _elicit(model, tokenizer, base_model, asked, known, folder, name, batch_size, seed, stage)
        record = _select(model, tokenizer, sites, transcripts, name, batch_size, stage)
        judge = LocalJudge.train(transcripts)
        auc[name] = judge.auc
        if judge.auc < POOR_AUC:
            warn(
                f"{name}: the personas' answers can hardly be told apart (AUC {judge.auc:.2f}, expected "
                f"{POOR_AUC} or more), so the neurons found may mean little; a larger chat model plays them better."
            )
        identification = Identification(
            questions_sha256=material_sha256(question.text for question in asked),
            personas_sha256=material_sha256(persona.text for persona in known),
            transcripts=len(transcripts),
            tokens=record.identification.tokens,
            seed=seed,
            split_half_reliability=record.identification.split_half_reliability,
            versions={
                "npti-export": npti_export.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        )
        adapter = adapter.with_trait(replace(record, identification=identification))
        decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
        with stage(f"{name}: find the dose", (2 * len(DOSES) + 1) * len(held_back)) as progress:
            adapter = adapter.with_trait(
                calibrate(model, tokenizer, adapter, name, held_back, judge, decoding, progress)
            )
        adapter.save_pretrained(folder)
        write_transcripts(transcripts_file(folder, name), transcripts)
        for partial in folder.glob(f"transcripts/.{name}.*.partial"):
            partial.unlink()
    return Identified(adapter, folder, auc)


def transcripts_file(folder: Path, trait: str) -> Path:
    """Where the transcripts of a trait lie beside an adapter."""
    return folder / "transcripts" / f"{trait}.jsonl"


def split_questions(
    questions: Sequence[Question], max_questions: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions to ask and questions held back for the dose, both balanced over facets, in a seeded order.

    Raises:
        NptiError: If there are not enough for both.
    """
    distinct = list({question.text: question for question in questions}.values())
    by_facet: dict[str, list[Question]] = {}
    for question in random.Random(f"questions {seed}").sample(distinct, len(distinct)):
        by_facet.setdefault(question.facet, []).append(question)
    longest = max(map(len, by_facet.values()))
    columns = [facet[at] for at in range(longest) for facet in by_facet.values() if at < len(facet)]
    asked = min(max_questions, len(columns) - HELD_BACK)
    if asked < 2:
        raise NptiError(
            f"There are {len(columns)} different questions; at least {HELD_BACK + 2} are needed, {HELD_BACK} of them to "
            "find the dose."
        )
    return columns[:asked], columns[asked : asked + HELD_BACK]


def _elicit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base_model: BaseModel,
    asked: list[Question],
    personas: list[Persona],
    folder: Path,
    name: str,
    batch_size: int,
    seed: int,
    stage: Stage,
) -> list[Transcript]:
    planned = plan(asked, personas, seed)
    decoding = replace(IDENTIFICATION_DECODING, batch_size=batch_size)
    # Answers of a run that was broken off are taken up again only if model and decoding are the same.
    same = hashlib.sha256(f"{base_model} {decoding.max_new_tokens} {decoding.repetition_penalty}".encode()).hexdigest()
    partial = folder / "transcripts" / f".{name}.{same[:12]}.partial"
    with stage(f"{name}: answers in character", len(planned)) as progress:
        return elicit(model, tokenizer, planned, partial, decoding, progress)


def _select(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    transcripts: list[Transcript],
    name: str,
    batch_size: int,
    stage: Stage,
) -> TraitRecord:
    statistics = {}
    with stage(f"{name}: measure neurons", len(transcripts)) as progress:
        for pole in Pole:
            of_pole = [transcript for transcript in transcripts if transcript.pole is pole]
            halves = [measure(model, tokenizer, sites, of_pole[start::2], batch_size, progress) for start in (0, 1)]
            statistics[pole] = Halves(*halves)
    whole = {pole: halves.whole for pole, halves in statistics.items()}
    method = Method()
    poles = {
        pole: PoleRecord(
            neurons=select(whole[pole], whole[pole.opposite], method, START_GAMMA), gamma=START_GAMMA, method=method
        )
        for pole in Pole
    }
    for pole, record in poles.items():
        if not len(record.neurons):
            raise NptiError(f"{name}: no neuron fires more at the {pole} pole; the personas made no difference.")
    found = Identification(
        tokens={str(pole): whole[pole].tokens for pole in Pole},
        split_half_reliability=round(split_half_reliability(statistics), 6),
    )
    return TraitRecord(name, poles, found)


def _adapter_in(folder: Path, base_model: BaseModel) -> PersonalityAdapter:
    """The adapter that the folder holds, or an empty one; refuses before any work is done what would fail after it."""
    if (folder / "config.json").exists():
        there = read_base_model(folder)
        if (there.id, there.fingerprint) != (base_model.id, base_model.fingerprint):
            raise NptiError(
                f"{folder} holds an adapter for {there.id} with other weights than this {base_model.id}; choose "
                "another --output, or remove that adapter."
            )
        return PersonalityAdapter.from_pretrained(folder)
    probe = folder / ".write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise NptiError(f"{folder} cannot be written ({error.strerror}); choose another --output.") from None
    return PersonalityAdapter(base_model, {})


def _shipped(trait: str) -> list[Question]:
    return shipped_questions(trait, "identification")


def _silent(_what: str, _steps: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done: None)
