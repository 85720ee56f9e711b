"""Transcripts that exist already: high and low answers from anywhere, as those of the model that is to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import Prompt, answer_of_text, answer_of_tokens, check_room, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.traits import Pole
from npti_export.traits.material import json_lines


def read_given(path: Path, trait: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Transcript]:
    """Reads answers that somebody else wrote, in an order in which every stretch holds both poles.

    Args:
        path: JSON lines with the keys ``question``, ``answer`` and ``pole`` (high or low); ``persona`` where there was
            one, ``trait`` where the file holds several, ``finished`` false where the answer broke off. Transcripts of
            identification are such a file; their ``token_ids`` are taken where they are tokens of this model.
        trait: The trait; lines that name another are left out.
        model: The model that is to be measured.
        tokenizer: Its tokenizer.

    Raises:
        NptiError: If the file is not there, a line is broken (its number is named), an answer stands there twice, a
            pole has no answer, or a prompt fills the model's context.
    """
    given: dict[tuple[Pole, str, str, str], Transcript] = {}
    for number, record in json_lines(path):
        if str(record.get("trait") or trait).lower() != trait:
            continue
        where = f"{path}, line {number}"
        pole = str(record.get("pole")).lower()
        if pole not in list(Pole):
            raise NptiError(f"{where}: the pole is {record.get('pole')!r}; high or low is expected.")
        question = _text(record, "question", where)
        if not question:
            raise NptiError(f"{where}: the question is empty; write it, or take the line out.")
        persona = "" if record.get("persona") is None else _text(record, "persona", where)
        prompt = prompt_ids(Prompt(question, persona or None), tokenizer)
        check_room(model, [prompt])
        transcript = _transcript(record, where, (trait, Pole(pole), question, persona), prompt, model, tokenizer)
        key = (transcript.pole, question, persona, transcript.answer)
        if key in given:  # it would be in both halves, which then agree for no reason
            raise NptiError(f"{where}: the same answer to the same question stands in an earlier line; take one out.")
        given[key] = transcript
    for of_pole in Pole:
        if not any(transcript.pole is of_pole for transcript in given.values()):
            raise NptiError(
                f"{path} holds no {of_pole} answer for {trait}; lines with 'question', 'answer' and 'pole' are "
                "expected."
            )
    return both_poles_throughout(list(given.values()))


def both_poles_throughout(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """Transcripts in an order whose every stretch holds both poles, and every other question's too.

    Questions that both poles answer come first and as they are; of the others a high and a low one follow each other,
    in turns the one first and the other, so that both halves (every other question) hold as many of each pole.

    Args:
        transcripts: Of both poles, in any order.
    """
    poles: dict[str, set[Pole]] = {}
    for transcript in transcripts:
        poles.setdefault(transcript.question, set()).add(transcript.pole)
    paired = [question for question, of_question in poles.items() if len(of_question) == 2]
    single = {pole: [question for question, of_question in poles.items() if of_question == {pole}] for pole in Pole}
    pairs = zip_longest(single[Pole.HIGH], single[Pole.LOW])
    turned = chain.from_iterable(pair if at % 2 == 0 else pair[::-1] for at, pair in enumerate(pairs))
    place = {question: at for at, question in enumerate([*paired, *filter(None, turned)])}
    return sorted(transcripts, key=lambda transcript: place[transcript.question])


def _transcript(
    record: dict[str, Any],
    where: str,
    asked: tuple[str, Pole, str, str],
    prompt: list[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Transcript:
    text, finished = _text(record, "answer", where), record.get("finished", True)
    if not isinstance(finished, bool):
        raise NptiError(f"{where}: 'finished' is {finished!r}; true or false is expected.")
    kept = record.get("token_ids")
    if isinstance(kept, list) and kept and all(type(token) is int and 0 <= token < len(tokenizer) for token in kept):
        # Tokens say more than their text (thinking, how words were cut), if they are this tokenizer's.
        answer = answer_of_tokens(kept, prompt, model, tokenizer)
        if answer.text == text:
            return Transcript(*asked, text, answer.token_ids, answer.finished)
    answer = answer_of_text(text, finished, prompt, model, tokenizer)
    return Transcript(*asked, answer.text, answer.token_ids, answer.finished)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise NptiError(f"{where}: no text under the key {key!r}; every answer needs 'question', 'answer' and 'pole'.")
    return text.strip()
