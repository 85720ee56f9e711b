"""Elicit: personas and questions → transcripts, kept as JSON lines as they come."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import (
    Answer,
    Decoding,
    Progress,
    Prompt,
    answer_of_tokens,
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


_TRANSCRIPT = TypeAdapter(Transcript)


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
        NptiError: If another line is broken, or the file cannot be read or written.
    """
    kept = {(t.pole, t.question, t.persona): t for t in read_transcripts(path)}
    if path.exists():  # also where nothing but half a first line is in it, which the next one must not be joined to
        write_transcripts(path, list(kept.values()))
    return kept


def read_transcripts(path: Path) -> list[Transcript]:
    """Reads a transcripts file; a last line that was broken off in the middle of writing is dropped.

    Raises:
        NptiError: If the file cannot be read, or another line is broken; its number is named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None
    transcripts = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                transcripts.append(_TRANSCRIPT.validate_json(line, strict=True))
        except ValidationError as error:
            if number == len(lines):
                break
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            what = f"{field}: {first['msg']}" if field else first["msg"]
            raise NptiError(f"{path}, line {number}: no transcript ({what}); mend or remove the file.") from None
    return transcripts


def check_tokens(
    path: Path, transcripts: Sequence[Transcript], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuses transcripts whose tokens are not their text by this tokenizer: they are another model's.

    Args:
        path: Where they were read, for the message.
        transcripts: What it holds.
        model: The model that is taken to have said it.
        tokenizer: Its tokenizer.

    Raises:
        NptiError: If there is one, or a prompt fills the model's context.
    """
    known: Any = model.get_input_embeddings()
    for number, transcript in enumerate(transcripts, 1):
        prompt = prompt_ids(Prompt(transcript.question, transcript.persona or None), tokenizer)
        check_room(model, [prompt])
        ids = transcript.token_ids
        fits = all(0 <= token < known.weight.shape[0] for token in ids)
        if not fits or answer_of_tokens(ids, prompt, model, tokenizer).text != transcript.answer:
            raise NptiError(
                f"{path}, answer {number}: its tokens are not its text by this model's tokenizer, so another model "
                "gave it; elicit again, or have it measured as if this one had said it by `elicit --transcripts`."
            )


def write_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Writes a transcripts file whole, beside its place first.

    Raises:
        NptiError: If it cannot be written.
    """
    write_beside(path, _lines(transcripts))


def transcript_of(question: Question, persona: Persona, answer: Answer) -> Transcript:
    """An answer with what was asked for it."""
    return Transcript(
        persona.trait, persona.pole, question.text, persona.text, answer.text, answer.token_ids, answer.finished
    )


def append_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Adds transcripts to those that a file holds, or leaves it as it was.

    Raises:
        NptiError: If they cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            left = memoryview(_lines(transcripts))
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)  # half a line would be joined to the next
                raise
    except OSError as error:
        raise NptiError(
            f"{path} cannot be written ({error.strerror}); make room, and the same command goes on with the answers "
            "that are there."
        ) from None


def _lines(transcripts: Sequence[Transcript]) -> bytes:
    return "".join(json.dumps(asdict(transcript), ensure_ascii=False) + "\n" for transcript in transcripts).encode()
