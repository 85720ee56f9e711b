"""The first two stages of one trait, each from files to files: elicit and measure.

A stage that is broken off leaves what it had; the next run goes on from there and ends in the same bytes, because what
decides a bit of the result (model, decoding, batches, blocks, material, seed) is part of the name or record that the
kept work is found by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import npti_export
from npti_export.adapter.base_model import BaseModel
from npti_export.errors import NptiError
from npti_export.identification.answer_faults import count_faults
from npti_export.identification.answers import Decoding, Progress, Prompt, check_room, prompt_ids
from npti_export.identification.elicit import Transcript, elicit, read_transcripts, write_transcripts
from npti_export.identification.files import TraitFiles, digest, file_sha256
from npti_export.identification.measure import measure
from npti_export.identification.measurement import (
    Measurement,
    Source,
    read_source,
    write_measurement,
    write_source,
)
from npti_export.identification.questions import BLOCK_QUESTIONS, ENOUGH_QUESTIONS, Material
from npti_export.identification.reliability import Reliability, reliability
from npti_export.identification.selection import Statistics, read_measured
from npti_export.identification.selector import Selector
from npti_export.identification.statistics_file import write_statistics
from npti_export.steering.sites import Site
from npti_export.traits import Pole
from npti_export.traits.material import material_sha256

RELIABILITY = 0.99
"""Split-half reliability of delta at which no more questions are asked, unless the caller says otherwise."""

MEASURED = "neurons and residual stream"
"""What statistics hold; those of a release that measured less are measured again."""


@dataclass(frozen=True)
class Work:
    """What the first two stages work with.

    Args:
        model: A chat model, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        base_model: What an adapter records of it.
        decoding: How answers are decoded; its batch size is that of measuring too.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sites: Sequence[Site]
    base_model: BaseModel
    decoding: Decoding

    @property
    def decides(self) -> str:
        """Hash over what decides the bits of a forward, and of what is decoded."""
        model = self.model
        return digest(self.base_model, model.dtype, model.device.type, self.decoding, self.tokenizer.chat_template)


def run_elicit(work: Work, files: TraitFiles, material: Material, progress: Progress | None = None) -> list[Transcript]:
    """Asks all planned questions in character and writes the transcripts.

    Args:
        work: Model and decoding.
        files: Where the transcripts go.
        material: What is asked.
        progress: Told how many more answers are there.

    Raises:
        NptiError: If a prompt fills the model's context, or the files cannot be read or written.
    """
    blocks = _answers(work, files, material, lambda: False, progress)
    transcripts = [transcript for block in blocks for transcript in block]
    _finish_transcripts(work, files, material, transcripts)
    return transcripts


def run_measure(work: Work, files: TraitFiles, progress: Progress | None = None) -> Measurement:
    """Measures the transcripts that are there and writes the statistics of both poles.

    Args:
        work: The model that gave the answers.
        files: Where the transcripts lie and the statistics go.
        progress: Told how many more transcripts are done.

    Raises:
        NptiError: If there are no transcripts of both poles, or the files cannot be read or written.
    """
    transcripts = read_transcripts(files.transcripts)
    for pole in Pole:
        if not any(transcript.pole is pole for transcript in transcripts):
            raise NptiError(
                f"{files.transcripts} holds no answer of the {pole} pole; `npti-export elicit --trait {files.trait}` "
                "writes them."
            )
    curve: list[Reliability] = []
    statistics = _measure_blocks(work, _in_blocks(transcripts), curve, progress)
    return _finish_statistics(work, files, transcripts, statistics, curve)


def run_elicit_and_measure(
    work: Work, files: TraitFiles, material: Material, goal: float = RELIABILITY, progress: Progress | None = None
) -> tuple[list[Transcript], Statistics, Measurement]:
    """Asks and measures block by block until the statistics are sure enough, and writes both.

    Stops at the first block that brings the split-half reliability of delta to ``goal``, not before 30 questions, or
    when all questions are asked. Answers that are there from before are always used.

    Args:
        work: Model and decoding.
        files: Where everything goes.
        material: What is asked at most.
        goal: The reliability; 1 asks all questions.
        progress: Told of every answer twice, once when it is there and once when it is measured.

    Returns:
        The transcripts, the statistics of both poles, and what the measurement says of itself.

    Raises:
        NptiError: If a prompt fills the model's context, or the files cannot be read or written.
    """
    there = _finished(work, files, material, goal)
    if there is not None:
        return there
    curve: list[Reliability] = []
    transcripts: list[Transcript] = []

    def enough() -> bool:
        return bool(curve) and _is_enough(curve[-1], goal)

    def noted(blocks: Iterable[list[Transcript]]) -> Iterator[list[Transcript]]:
        for block in blocks:
            transcripts.extend(block)
            yield block

    statistics = _measure_blocks(work, noted(_answers(work, files, material, enough, progress)), curve, progress)
    _finish_transcripts(work, files, material, transcripts)
    return transcripts, statistics, _finish_statistics(work, files, transcripts, statistics, curve)


def _answers(
    work: Work, files: TraitFiles, material: Material, enough: Callable[[], bool], progress: Progress | None
) -> Iterator[list[Transcript]]:
    """Elicits block by block, for as long as it is not enough; blocks that are kept whole come in any case."""
    made_with = _made_with(work, material)
    partial = files.partial(made_with)
    if not partial.exists() and _source(files).made_with == made_with:
        write_transcripts(partial, read_transcripts(files.transcripts))
    kept = {(t.pole, t.question, t.persona) for t in read_transcripts(partial)}
    asked = [Prompt(question.text, persona.text) for question, persona in material.planned]
    check_room(work.model, [prompt_ids(prompt, work.tokenizer) for prompt in asked])
    for block in material.blocks:
        if enough() and not {(persona.pole, question.text, persona.text) for question, persona in block} <= kept:
            return
        yield elicit(work.model, work.tokenizer, block, partial, work.decoding, progress)


def _measure_blocks(
    work: Work, blocks: Iterable[Sequence[Transcript]], curve: list[Reliability], progress: Progress | None
) -> Statistics:
    """Measures block by block and adds to the curve after each; every other question belongs to the same half."""
    place: dict[str, int] = {}
    statistics: Statistics = {}
    for block in blocks:
        for transcript in block:
            place.setdefault(transcript.question, len(place))
        for pole in Pole:
            of_pole = [transcript for transcript in block if transcript.pole is pole]
            halves = [place[transcript.question] % 2 for transcript in of_pole]
            measured = measure(
                work.model, work.tokenizer, work.sites, of_pole, work.decoding.batch_size, progress, halves
            )
            statistics[pole] = statistics[pole] + measured if pole in statistics else measured
        curve.append(reliability(statistics, Selector(), len(place)))
    return statistics


def _in_blocks(transcripts: Sequence[Transcript]) -> list[list[Transcript]]:
    """The blocks that these transcripts were elicited in."""
    place = {question: at for at, question in enumerate(dict.fromkeys(t.question for t in transcripts))}
    blocks: dict[int, list[Transcript]] = {}
    for transcript in transcripts:
        blocks.setdefault(place[transcript.question] // BLOCK_QUESTIONS, []).append(transcript)
    return [blocks[at] for at in sorted(blocks)]


def _finish_transcripts(work: Work, files: TraitFiles, material: Material, transcripts: Sequence[Transcript]) -> None:
    write_transcripts(files.transcripts, transcripts)
    source = Source(
        _made_with(work, material),
        file_sha256(files.transcripts) or "",
        _questions_sha256(transcripts),
        material.personas_sha256,
        material.seed,
    )
    write_source(files.source, source)
    for done in files.transcripts.parent.glob(f".{files.trait}.*.partial"):
        done.unlink()


def _finish_statistics(
    work: Work,
    files: TraitFiles,
    transcripts: Sequence[Transcript],
    statistics: Statistics,
    curve: Sequence[Reliability],
) -> Measurement:
    source = _source(files)
    if not source.made_with:  # transcripts from elsewhere: what can be told is told from them
        personas = material_sha256(dict.fromkeys(transcript.persona for transcript in transcripts))
        source = Source("", file_sha256(files.transcripts) or "", _questions_sha256(transcripts), personas, 0)
    for pole, of_pole in statistics.items():
        write_statistics(files.statistics(pole), of_pole, work.base_model, files.trait, pole)
    measurement = Measurement(
        source,
        _measured_with(work, source),
        {pole: file_sha256(files.statistics(pole)) or "" for pole in Pole},
        len(transcripts),
        count_faults(transcripts),
        tuple(curve),
        {
            "npti-export": npti_export.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    write_measurement(files.measurement, measurement)
    return measurement


def _finished(
    work: Work, files: TraitFiles, material: Material, goal: float
) -> tuple[list[Transcript], Statistics, Measurement] | None:
    """What an earlier run left, if it is all that this one would make."""
    source = _source(files)
    if source.made_with != _made_with(work, material):
        return None
    try:
        statistics, measurement, base_model = read_measured(files)
    except NptiError:
        return None
    transcripts = read_transcripts(files.transcripts)
    same = (measurement.source, measurement.measured_with) == (source, _measured_with(work, source))
    left = len(material.planned) - len(transcripts)
    enough = left == 0 or (left > 0 and _is_enough(measurement.curve[-1], goal))
    return (transcripts, statistics, measurement) if same and enough and base_model == work.base_model else None


def _is_enough(last: Reliability, goal: float) -> bool:
    return last.questions >= ENOUGH_QUESTIONS and last.split_half >= goal


def _source(files: TraitFiles) -> Source:
    """How the transcripts that are there were made; nothing is known of others, or of ones changed since."""
    unknown = Source("", "", "", "", 0)
    try:
        source = read_source(files.source)
    except NptiError:
        return unknown
    return source if source.transcripts_sha256 == file_sha256(files.transcripts) else unknown


def _made_with(work: Work, material: Material) -> str:
    return digest(work.decides, material.sha256)


def _measured_with(work: Work, source: Source) -> str:
    return digest(work.decides, source.transcripts_sha256, MEASURED)


def _questions_sha256(transcripts: Sequence[Transcript]) -> str:
    return material_sha256(dict.fromkeys(transcript.question for transcript in transcripts))
