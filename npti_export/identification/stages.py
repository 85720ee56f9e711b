"""The first two stages of one trait, each from files to files: elicit and measure.

A stage that is broken off leaves what it had; the next run goes on from there and ends in the same bytes, because what
decides a bit of the result (model, decoding, batches, blocks, material, seed) is part of the name or record that the
kept work is found by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import transformers

import npti_export
from npti_export.errors import NptiError
from npti_export.identification.answer_faults import count_faults
from npti_export.identification.answers import Progress, Prompt, check_room, prompt_ids
from npti_export.identification.elicit import Transcript, check_tokens, elicit, read_transcripts, write_transcripts
from npti_export.identification.elicit_by_endpoint import elicit_by_endpoint
from npti_export.identification.files import TraitFiles, digest, file_sha256
from npti_export.identification.measure import measure
from npti_export.identification.measurement import Measurement, Source, write_measurement, write_source
from npti_export.identification.processes import first_does, from_all
from npti_export.identification.questions import BLOCK_QUESTIONS, ENOUGH_QUESTIONS, Material
from npti_export.identification.reliability import Reliability, reliability
from npti_export.identification.selection import Statistics
from npti_export.identification.selector import Selector
from npti_export.identification.statistics import left_out
from npti_export.identification.statistics_file import write_statistics
from npti_export.identification.work import Work, made_with_of, measured_of, measured_with_of, source_of
from npti_export.traits import Pole
from npti_export.traits.material import material_sha256

RELIABILITY = 0.99
"""Split-half reliability of delta at which no more questions are asked, unless the caller says otherwise."""


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
    first_does(lambda: _finish_transcripts(work, files, material, transcripts))
    return transcripts


def run_given(work: Work, files: TraitFiles, transcripts: Sequence[Transcript]) -> None:
    """Takes answers that exist in the place of eliciting any, and writes them as transcripts.

    Args:
        work: The model that they are taken to be of.
        files: Where the transcripts go.
        transcripts: The answers.

    Raises:
        NptiError: If the files cannot be written.
    """

    def write() -> None:
        write_transcripts(files.transcripts, transcripts)
        questions, personas = _questions_sha256(transcripts), _personas_sha256(transcripts)
        made_with = digest(work.decides, "given")
        write_source(files.source, Source(made_with, file_sha256(files.transcripts) or "", questions, personas, 0))

    first_does(write)


def run_measure(work: Work, files: TraitFiles, progress: Progress | None = None) -> Measurement:
    """Measures the transcripts that are there and writes the statistics of both poles.

    Args:
        work: The model that gave the answers.
        files: Where the transcripts lie and the statistics go.
        progress: Told how many more transcripts are done.

    Raises:
        NptiError: If there are no transcripts of both poles, they are another model's, or the files cannot be read or
            written.
    """
    transcripts = read_transcripts(files.transcripts)
    for pole in Pole:
        if not any(transcript.pole is pole for transcript in transcripts):
            raise NptiError(
                f"{files.transcripts} holds no answer of the {pole} pole; `npti-export elicit --trait {files.trait}` "
                "writes them."
            )
    check_tokens(files.transcripts, transcripts, work.model, work.tokenizer)
    curve: list[Reliability] = []
    statistics = _measure_blocks(work, _in_blocks(transcripts), curve, progress)
    return first_does(lambda: _finish_statistics(work, files, transcripts, statistics, curve))


def run_given_and_measure(
    work: Work, files: TraitFiles, transcripts: Sequence[Transcript], progress: Progress | None = None
) -> tuple[list[Transcript], Statistics, Measurement]:
    """Takes answers that exist and measures all of them, unless that is done already.

    Args:
        work: The model that they are taken to be of.
        files: Where everything goes.
        transcripts: The answers.
        progress: Told how many more transcripts are measured.

    Returns:
        The transcripts, the statistics of both poles, and what the measurement says of itself.

    Raises:
        NptiError: If the files cannot be read or written.
    """
    run_given(work, files, transcripts)
    there = measured_of(work, files, source_of(files))
    if not all(from_all(there is not None)):
        run_measure(work, files, progress)
        there = measured_of(work, files, source_of(files))
    assert there is not None
    return list(transcripts), *there


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
    if all(from_all(there is not None)) and there is not None:
        # Left where a stage that ran alone was killed after all was done.
        first_does(lambda: files.partial(made_with_of(work, material)).unlink(missing_ok=True))
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
    first_does(lambda: _finish_transcripts(work, files, material, transcripts))
    measurement = first_does(lambda: _finish_statistics(work, files, transcripts, statistics, curve))
    return transcripts, statistics, measurement


def _answers(
    work: Work, files: TraitFiles, material: Material, enough: Callable[[], bool], progress: Progress | None
) -> Iterator[list[Transcript]]:
    """Elicits block by block, for as long as it is not enough; blocks that are kept whole come in any case."""
    made_with = made_with_of(work, material)
    partial = files.partial(made_with)

    def take_up() -> set[tuple[Pole, str, str]]:
        if not partial.exists() and source_of(files).made_with == made_with:
            write_transcripts(partial, read_transcripts(files.transcripts))
        return {(t.pole, t.question, t.persona) for t in read_transcripts(partial)}

    kept = first_does(take_up)
    asked = [Prompt(question.text, persona.text) for question, persona in material.planned]
    check_room(work.model, [prompt_ids(prompt, work.tokenizer) for prompt in asked])
    for block in material.blocks:
        if enough() and not {(persona.pole, question.text, persona.text) for question, persona in block} <= kept:
            return
        if work.endpoint is not None:
            yield elicit_by_endpoint(work.endpoint, work.model, work.tokenizer, block, partial, work.decoding, progress)
        else:
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
            if not of_pole:  # the last ones of transcripts from elsewhere that have more of the other pole
                continue
            halves = [place[transcript.question] % 2 for transcript in of_pole]
            measured = measure(
                work.model, work.tokenizer, work.sites, of_pole, work.decoding.batch_size, progress, halves
            )
            statistics[pole] = statistics[pole] + measured if pole in statistics else measured
        if len(statistics) == len(Pole):
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
        made_with_of(work, material),
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
    source = source_of(files)
    if not source.made_with:  # transcripts from elsewhere: what can be told is told from them
        questions, personas = _questions_sha256(transcripts), _personas_sha256(transcripts)
        source = Source("", file_sha256(files.transcripts) or "", questions, personas, 0)
    for pole, of_pole in statistics.items():
        write_statistics(files.statistics(pole), of_pole, work.base_model, files.trait, pole)
    measurement = Measurement(
        source,
        measured_with_of(work, source),
        {pole: file_sha256(files.statistics(pole)) or "" for pole in Pole},
        len(transcripts),
        count_faults(transcripts),
        tuple(curve),
        {
            "npti-export": npti_export.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        tuple(left_out(statistics[Pole.HIGH].whole, statistics[Pole.LOW].whole)),
    )
    write_measurement(files.measurement, measurement)
    return measurement


def _finished(
    work: Work, files: TraitFiles, material: Material, goal: float
) -> tuple[list[Transcript], Statistics, Measurement] | None:
    """What an earlier run left, if it is all that this one would make."""
    source = source_of(files)
    there = measured_of(work, files, source) if source.made_with == made_with_of(work, material) else None
    if there is None:
        return None
    transcripts = read_transcripts(files.transcripts)
    asked = [(persona.pole, question.text, persona.text) for question, persona in material.planned]
    # A hash over texts does not tell that a question is of another facet now, or a persona of the other pole.
    if [(t.pole, t.question, t.persona) for t in transcripts] != asked[: len(transcripts)]:
        return None
    enough = len(transcripts) == len(asked) or _is_enough(there[1].curve[-1], goal)
    return (transcripts, *there) if enough else None


def _is_enough(last: Reliability, goal: float) -> bool:
    return last.questions >= ENOUGH_QUESTIONS and last.split_half >= goal


def _questions_sha256(transcripts: Sequence[Transcript]) -> str:
    return material_sha256(dict.fromkeys(transcript.question for transcript in transcripts))


def _personas_sha256(transcripts: Sequence[Transcript]) -> str:
    return material_sha256(dict.fromkeys(transcript.persona for transcript in transcripts))
