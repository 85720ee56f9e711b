"""Elicit: personas and questions → transcripts, kept as JSON lines as they come."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers
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
        persona: The persona that the model was given.
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
    """
    by_pole = {pole: [persona for persona in personas if persona.pole is pole] for pole in Pole}
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

    Args:
        model: A chat model, unsteered.
        tokenizer: Its tokenizer.
        planned: Questions and the persona each is asked with.
        keep_in: A JSON-lines file; what it holds already is not asked again, and new answers are added as they come.
        decoding: How answers are decoded.
        progress: Told how many more answers are there.

    Returns:
        Transcripts in the order planned.
    """
    kept = {(t.question, t.persona, t.pole): t for t in read_transcripts(keep_in)} if keep_in else {}
    missing = [pair for pair in planned if (pair[0].text, pair[1].text, pair[1].pole) not in kept]
    if progress and len(planned) > len(missing):
        progress(len(planned) - len(missing))

    def keep(place: int, answer: Answer) -> None:
        question, persona = missing[place]
        transcript = Transcript(
            persona.trait, persona.pole, question.text, persona.text, answer.text, answer.token_ids, answer.finished
        )
        kept[(question.text, persona.text, persona.pole)] = transcript
        if keep_in:
            _append(keep_in, transcript)

    prompts = [Prompt(question.text, persona.text) for question, persona in missing]
    generate_answers(model, tokenizer, prompts, decoding, progress, keep)
    return [kept[(question.text, persona.text, persona.pole)] for question, persona in planned]


def read_transcripts(path: Path) -> list[Transcript]:
    """Reads a transcripts file; a last line that was broken off in the middle of writing is dropped.

    Raises:
        NptiError: If another line is broken; its number is named.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    transcripts = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                record = json.loads(line)
                record |= {"pole": Pole(record["pole"]), "token_ids": tuple(record["token_ids"])}
                transcripts.append(Transcript(**record))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise NptiError(f"{path}, line {number}: no transcript ({error}); mend or remove the file.") from None
    return transcripts


def write_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Writes a transcripts file whole, beside its place first."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text("".join(_line(transcript) for transcript in transcripts), encoding="utf-8")
    beside.replace(path)


def _append(path: Path, transcript: Transcript) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(transcript))


def _line(transcript: Transcript) -> str:
    return json.dumps(asdict(transcript), ensure_ascii=False) + "\n"
