"""Elicit through a server that serves the same model: faster than here, and the answers are measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.identification.answers import (
    Decoding,
    Progress,
    Prompt,
    answer_of_text,
    check_room,
    context_length,
    messages_of,
    prompt_ids,
)
from npti_export.identification.elicit import Transcript, append_transcripts, take_up, transcript_of
from npti_export.identification.endpoint import Endpoint, Reply, Request
from npti_export.identification.processes import first_does
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question


def elicit_by_endpoint(
    endpoint: Endpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    planned: Sequence[tuple[Question, Persona]],
    keep_in: Path,
    decoding: Decoding,
    progress: Progress | None = None,
) -> list[Transcript]:
    """Has a server answer questions in character, many at a time; each answer is kept as it comes.

    The server's chat template, not this tokenizer's, makes the prompt; its words are cut into tokens here.

    Args:
        endpoint: The server.
        model: The model here that it serves too.
        tokenizer: Its tokenizer.
        planned: Questions and the persona each is asked with.
        keep_in: A JSON-lines file; what it holds already is not asked again, and new answers are added as they come.
        decoding: How answers are decoded; greedily, with a repetition penalty where the server knows one.
        progress: Told how many more answers are there.

    Returns:
        Transcripts in the order planned, whichever answer came first.

    Raises:
        NptiError: If a prompt fills the model's context, or the server is lost; what came before that is kept.
    """
    prompts = [Prompt(question.text, persona.text) for question, persona in planned]
    encoded = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    check_room(model, encoded)
    keys = [(persona.pole, question.text, persona.text) for question, persona in planned]

    def ask() -> dict[tuple[Pole, str, str], Transcript]:
        kept = take_up(keep_in)
        missing = [at for at, key in enumerate(keys) if key not in kept]
        if progress:
            progress(len(keys) - len(missing))

        def told(place: int, reply: Reply) -> None:
            at = missing[place]
            answer = answer_of_text(reply.text, reply.finished, encoded[at], model, tokenizer)
            kept[keys[at]] = transcript_of(*planned[at], answer)
            append_transcripts(keep_in, [kept[keys[at]]])
            if progress:
                progress(1)

        requests = [_request(prompts[at], encoded[at], model, tokenizer, decoding) for at in missing]
        endpoint.ask_all(requests, told)
        return kept

    kept = first_does(ask)
    return [kept[key] for key in keys]


def _request(
    prompt: Prompt, ids: list[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> Request:
    room = context_length(model) - len(ids)
    messages = tuple(messages_of(prompt, tokenizer))
    return Request(messages, min(decoding.max_new_tokens, room), decoding.repetition_penalty)
