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
from npti_export.evaluation.local_judge import FOLDS, LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Decoding, Progress
from npti_export.identification.elicit import (
    IDENTIFICATION_DECODING,
    Transcript,
    elicit,
    plan,
    write_transcripts,
)
from npti_export.identification.measure import measure
from npti_export.identification.select import select, split_half_reliability
from npti_export.steering.sites import Site, describe_base_model, find_sites
from npti_export.traits import TRAIT_NAME, Pole, trait_named
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
    names = [traits] if isinstance(traits, str) else list(dict.fromkeys(traits))
    for name in names:
        if not TRAIT_NAME.fullmatch(name):
            raise NptiError(f"{name!r} is no name of a trait; small letters, digits and _ are expected.")
    stage = stage or _silent
    # What would fail late is refused before any work: the model, the material of every trait, the folder.
    sites = find_sites(model)
    base_model = describe_base_model(model, sites)
    material = {
        name: _Material.of((questions or _shipped)(name), (personas or _shipped_personas)(name), max_questions, seed)
        for name in names
    }
    folder = Path(output) if output is not None else default_adapter_folder(base_model.id)
    adapter = _adapter_in(folder, base_model)
    auc = {}
    for name, given in material.items():
        decoding = replace(IDENTIFICATION_DECODING, batch_size=batch_size)
        partial = _partial_file(folder, name, base_model, model, tokenizer, decoding)
        with stage(f"{name}: answers in character", len(given.planned)) as progress:
            transcripts = elicit(model, tokenizer, given.planned, partial, decoding, progress)
        judge = LocalJudge.train(transcripts)
        auc[name] = judge.auc
        if judge.auc < POOR_AUC:
            warn(
                f"{name}: the personas' answers can hardly be told apart (AUC {judge.auc:.2f}, expected "
                f"{POOR_AUC} or more), so the neurons found may mean little; a larger chat model plays them better."
            )
        with stage(f"{name}: measure neurons", len(transcripts)) as progress:
            record = _identified(model, tokenizer, sites, name, given, transcripts, batch_size, seed, progress)
        adapter = adapter.with_trait(record)
        with stage(f"{name}: find the dose", (2 * len(DOSES) + 1) * len(given.held_back)) as progress:
            decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
            adapter = adapter.with_trait(
                calibrate(model, tokenizer, adapter, name, given.held_back, judge, decoding, progress)
            )
        adapter.save_pretrained(folder)
        write_transcripts(transcripts_file(folder, name), transcripts)
        for done in partial.parent.glob(f".{name}.*.partial"):
            done.unlink()
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
    if max_questions < FOLDS:
        raise NptiError(f"max_questions is {max_questions}; at least {FOLDS} are needed, the folds of the local judge.")
    distinct = list({question.text: question for question in questions}.values())
    by_facet: dict[str, list[Question]] = {}
    for question in random.Random(f"questions {seed}").sample(distinct, len(distinct)):
        by_facet.setdefault(question.facet, []).append(question)
    longest = max(map(len, by_facet.values()), default=0)
    columns = [facet[at] for at in range(longest) for facet in by_facet.values() if at < len(facet)]
    asked = min(max_questions, len(columns) - HELD_BACK)
    if asked < FOLDS:
        raise NptiError(
            f"There are {len(columns)} different questions; at least {HELD_BACK + FOLDS} are needed, {HELD_BACK} of "
            "them to find the dose."
        )
    return columns[:asked], columns[asked : asked + HELD_BACK]


@dataclass(frozen=True)
class _Material:
    """What one trait is identified with: each question with its persona, and the questions held back for the dose."""

    planned: list[tuple[Question, Persona]]
    held_back: list[Question]
    questions_sha256: str
    personas_sha256: str

    @staticmethod
    def of(questions: list[Question], personas: list[Persona], max_questions: int, seed: int) -> _Material:
        asked, held_back = split_questions(questions, max_questions, seed)
        return _Material(
            plan(asked, personas, seed),
            held_back,
            material_sha256(question.text for question in asked),
            material_sha256(persona.text for persona in personas),
        )


def _partial_file(
    folder: Path,
    name: str,
    base_model: BaseModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
) -> Path:
    """Where answers are kept until the trait is done; another name wherever they could come out otherwise."""
    decides = f"{base_model} {model.dtype} {model.device.type} {decoding} {tokenizer.chat_template}"
    return folder / "transcripts" / f".{name}.{hashlib.sha256(decides.encode()).hexdigest()[:12]}.partial"


def _identified(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    name: str,
    given: _Material,
    transcripts: Sequence[Transcript],
    batch_size: int,
    seed: int,
    progress: Progress,
) -> TraitRecord:
    """Measures and selects: the trait with the neurons of both poles, at a dose that is still to be found."""
    statistics, halves = {}, {}
    for pole in Pole:
        of_pole = [transcript for transcript in transcripts if transcript.pole is pole]
        # Every other question makes a half, the same questions at both poles.
        half = [measure(model, tokenizer, sites, of_pole[start::2], batch_size, progress) for start in (0, 1)]
        halves[pole] = [measured.probability for measured in half]
        statistics[pole] = half[0] + half[1]
    deltas = [high - low for high, low in zip(halves[Pole.HIGH], halves[Pole.LOW], strict=True)]
    method = Method()
    poles = {}
    for pole in Pole:
        neurons = select(statistics[pole], statistics[pole.opposite], method, START_GAMMA)
        if not len(neurons):
            raise NptiError(
                f"{name}: no neuron fires more at the {pole} pole, so the personas made no difference; use other "
                "personas or a larger chat model."
            )
        poles[pole] = PoleRecord(neurons, START_GAMMA, method)
    identification = Identification(
        questions_sha256=given.questions_sha256,
        personas_sha256=given.personas_sha256,
        transcripts=len(transcripts),
        tokens={str(pole): measured.tokens for pole, measured in statistics.items()},
        seed=seed,
        split_half_reliability=round(split_half_reliability(*deltas), 6),
        versions={
            "npti-export": npti_export.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    return TraitRecord(name, poles, identification)


def _adapter_in(folder: Path, base_model: BaseModel) -> PersonalityAdapter:
    """The adapter that the folder holds, or an empty one."""
    adapter = PersonalityAdapter(base_model, {})
    if (folder / "config.json").exists():
        there = read_base_model(folder)
        if replace(there, revision=base_model.revision) != base_model:
            raise NptiError(
                f"{folder} holds the adapter of another base model ({_named(there)}) than this one "
                f"({_named(base_model)}); choose another --output, or remove that adapter."
            )
        adapter = PersonalityAdapter.from_pretrained(folder)
    probe = folder / ".write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise NptiError(f"{folder} cannot be written ({error.strerror}); choose another --output.") from None
    return adapter


def _named(model: BaseModel) -> str:
    return f"{model.id}, {model.num_neurons} neurons, weights {(model.fingerprint or 'unknown')[:12]}"


def _shipped_personas(trait: str) -> list[Persona]:
    return shipped_personas(trait_named(trait).name)


def _shipped(trait: str) -> list[Question]:
    return shipped_questions(trait_named(trait).name, "identification")


def _silent(_what: str, _steps: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done: None)
