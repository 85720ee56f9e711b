"""Elicit: personas and questions → transcripts, kept as JSON lines as they come."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import (
    Answer,
    Decoding,
    Progress,
    Prompt,
    batches_of,
    check_room,
    generate_answers,
    prompt_ids,
)
from npti_export.identification.files import write_beside
from npti_export.identification.processes import first_does, in_turns
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

IDENTIFICATION_DECODING = Decoding(max_new_tokens=500, repetition_penalty=1.1)


@dataclass(frozen=True)
class Transcript:
    """Question, persona and pole, and the answer that the model gave.

    Args:
        trait: The trait asked for.
        pole: The end that the persona stands for.
        question: The question.
        persona: The persona that the model was given; empty where there was none.
        answer: Its answer.
        token_ids: The answer's tokens, the end sign included where there was one.
        finished: Whether the answer ended by itself.
    """

    trait: str
    pole: Pole
    question: str
    persona: str
    answer: str
    token_ids: tuple[int, ...]
    finished: bool


def plan(questions: Sequence[Question], personas: Sequence[Persona], seed: int) -> list[tuple[Question, Persona]]:
    """Each question once a pole, with a persona of that pole drawn at random.

    Args:
        questions: What is asked.
        personas: Those of both poles.
        seed: Decides which persona gets which question.

    Raises:
        NptiError: If a pole has no persona.
    """
    by_pole = {pole: [persona for persona in personas if persona.pole is pole] for pole in Pole}
    for pole, of_pole in by_pole.items():
        if not of_pole:
            raise NptiError(f"There are {len(personas)} personas but none of the {pole} pole; both poles need some.")
    rng = random.Random(f"personas {seed}")
    return [(question, rng.choice(by_pole[pole])) for question in questions for pole in Pole]


def elicit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    planned: Sequence[tuple[Question, Persona]],
    keep_in: Path | None = None,
    decoding: Decoding = IDENTIFICATION_DECODING,
    progress: Progress | None = None,
) -> list[Transcript]:
    """Has a model answer questions in character.

    Batches are those of the whole plan however often the work was broken off, so that the answers are the same to the
    last bit; of a batch that was kept in part, all is asked again.

    Args:
        model: A chat model, unsteered.
        tokenizer: Its tokenizer.
        planned: Questions and the persona each is asked with.
        keep_in: A JSON-lines file; what it holds already is not asked again, and new answers are added as they come.
        decoding: How answers are decoded.
        progress: Told how many more answers are there.

    Returns:
        Transcripts in the order planned.

    Raises:
        NptiError: If a prompt fills the model's context, or the file holds a broken line.
    """
    prompts = [Prompt(question.text, persona.text) for question, persona in planned]
    encoded = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    check_room(model, encoded)
    keys = [(persona.pole, question.text, persona.text) for question, persona in planned]
    kept = first_does(lambda: take_up(keep_in)) if keep_in else {}
    for _, of_all in in_turns(batches_of(encoded, decoding.batch_size)):
        # Batches that follow one another are the same again when they are made from their prompts alone.
        missing = [at for places in of_all if any(keys[at] not in kept for at in places) for at in places]
        answers = generate_answers(model, tokenizer, [prompts[at] for at in missing], decoding)
        told = {keys[at]: transcript_of(*planned[at], answer) for at, answer in zip(missing, answers, strict=True)}
        if keep_in and told:
            first_does(partial(append_transcripts, keep_in, [told[key] for key in told if key not in kept]))
        kept |= told
        if progress:
            progress(sum(map(len, of_all)))
    return [kept[key] for key in keys]


def take_up(path: Path) -> dict[tuple[Pole, str, str], Transcript]:
    """What a file of kept transcripts holds, by pole, question and persona; a last line that broke off is taken out.

    Raises:
        NptiError: If another line is broken, or the file cannot be written.
    """
    kept = {(t.pole, t.question, t.persona): t for t in read_transcripts(path)}
    if kept:
        write_transcripts(path, list(kept.values()))
    return kept


def read_transcripts(path: Path) -> list[Transcript]:
    """Reads a transcripts file; a last line that was broken off in the middle of writing is dropped.

    Raises:
        NptiError: If another line is broken; its number is named.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    transcripts = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                record = json.loads(line)
                record |= {"pole": Pole(record["pole"]), "token_ids": tuple(map(int, record["token_ids"]))}
                transcripts.append(Transcript(**record))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise NptiError(f"{path}, line {number}: no transcript ({error}); mend or remove the file.") from None
    return transcripts


def write_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Writes a transcripts file whole, beside its place first.

    Raises:
        NptiError: If it cannot be written.
    """
    write_beside(path, "".join(map(_line, transcripts)).encode())


def transcript_of(question: Question, persona: Persona, answer: Answer) -> Transcript:
    """An answer with what was asked for it."""
    return Transcript(
        persona.trait, persona.pole, question.text, persona.text, answer.text, answer.token_ids, answer.finished
    )


def append_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Adds transcripts to those that a file holds.

    Raises:
        NptiError: If they cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(map(_line, transcripts))
    except OSError as error:
        raise NptiError(
            f"{path} cannot be written ({error.strerror}); make room, and the same command goes on with the answers "
            "that are there."
        ) from None


def _line(transcript: Transcript) -> str:
    return json.dumps(asdict(transcript), ensure_ascii=False) + "\n"
