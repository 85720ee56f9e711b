"""From a request to the answers that are to be generated: its personality, its prompts' tokens, its own limits."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import has_system_role
from npti_export.serving.answer_text import AnswerText
from npti_export.serving.engine import Answer, Engine, Piece
from npti_export.serving.openai_requests import ChatRequest, CompletionRequest, personality_of
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.running_batch import Row
from npti_export.steering.positions import Positions
from npti_export.steering.thinking import Thinking
from npti_export.traits import NEUTRAL, PersonalitySpec


class Service:
    """The model that is served, as requests see it.

    Args:
        name: What clients call it.
        engine: Generates its answers.
        served: Its personalities.
        generation: Its own choices for what a request leaves open.
        context: The largest number of tokens that it takes.
        vocabulary: Number of its tokens.
        ends: The tokens that end an answer.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        served: ServedPersonalities,
        generation: GenerationConfig,
        context: int,
        vocabulary: int,
        ends: frozenset[int],
    ) -> None:
        self.name, self.engine, self.served = name, engine, served
        self._generation = generation
        self._context = context
        self._vocabulary = vocabulary
        self._ends = ends
        self._thinking = Thinking.of(engine.tokenizer)
        # Others decode with the engine's meanwhile; encoding changes a tokenizer, which may not be in use then.
        self._tokenizer: PreTrainedTokenizerBase = copy.deepcopy(engine.tokenizer)
        self._reading = ThreadPoolExecutor(1, "npti-export reading")
        self._has_system_role = bool(engine.tokenizer.chat_template) and has_system_role(self._tokenizer)

    async def answers(
        self, request: ChatRequest | CompletionRequest, pieces: asyncio.Queue[tuple[int, Piece]]
    ) -> list[Answer]:
        """The answers that a request asks for; nothing is generated yet.

        Args:
            request: The request.
            pieces: Where the number of an answer and each of its pieces are put.

        Returns:
            The choices of the first prompt, then those of the second, and so on.

        Raises:
            UnknownModelError: If it names another model.
            NptiError: If it cannot be served.
        """
        # Reading takes milliseconds, more for long prompts and new personalities; streams of others go on meanwhile.
        loop = asyncio.get_running_loop()
        spec, prompts = await loop.run_in_executor(self._reading, self._read, request)
        positions = Positions.GENERATED if spec.is_neutral else self.served.positions(spec)
        sampling = request.sampling(self._generation)
        answers: list[Answer] = []
        for ids in prompts:
            for _ in range(request.choices):
                at = len(answers)
                answers.append(
                    Answer(
                        row=Row(list(ids), len(ids), spec, positions, self._thinking),
                        text=AnswerText(self.engine.tokenizer, request.stops),
                        sampling=sampling,
                        draws=sampling.draws(at),
                        max_tokens=self._most_tokens(request, len(ids)),
                        ends=frozenset() if request.ignore_eos else self._ends,
                        logprobs=request.likeliest,
                        deliver=partial(_put, pieces, at),
                    )
                )
        return answers

    def close(self) -> None:
        """Ends the engine after the answers that it has."""
        self.engine.close()
        self._reading.shutdown()

    def _most_tokens(self, request: ChatRequest | CompletionRequest, prompt: int) -> int:
        room = self._context - prompt
        return min(request.most_tokens or self._generation.max_new_tokens or room, room)

    def _read(self, request: ChatRequest | CompletionRequest) -> tuple[PersonalitySpec, list[list[int]]]:
        """The personality and the prompts that a request asks for."""
        asked = (request.model, request.personality, request.vllm_xargs or {})
        spec = personality_of(self.served, self.name, *asked)
        # A term of strength 0 may belong to a pole that cannot be served, which the whole batch would stumble over.
        return NEUTRAL if spec.is_neutral else spec, self._prompts(request)

    def _prompts(self, request: ChatRequest | CompletionRequest) -> list[list[int]]:
        """The tokens of a request's prompts."""
        count = 1 if isinstance(request, ChatRequest) else len(request.prompts)
        if not count:
            raise NptiError("There is no prompt; give one.")
        # Before anything is encoded: a body of a few megabytes may hold a million prompts.
        if (asked := count * request.choices) > self.engine.most:
            raise NptiError(f"{asked} answers were asked for; this server takes {self.engine.most} at a time.")
        if isinstance(request, ChatRequest):
            prompts = [self._chat(request)]
        else:
            prompts = [
                self._encoded(prompt, special=True) if isinstance(prompt, str) else prompt for prompt in request.prompts
            ]
        for ids in prompts:
            if not ids:
                raise NptiError("A prompt is empty; at least one token is needed.")
            if len(ids) >= self._context:
                raise NptiError(f"A prompt of {len(ids)} tokens fills the context of {self._context}; shorten it.")
            if (largest := max(ids)) >= self._vocabulary:
                raise NptiError(f"There is no token {largest}; the model has {self._vocabulary}.")
        return prompts

    def _chat(self, request: ChatRequest) -> list[int]:
        if not self._tokenizer.chat_template:
            raise NptiError(f"{self.name} has no chat template, so it is no chat model; use /v1/completions.")
        messages = [message.for_template for message in request.messages]
        if not self._has_system_role:
            messages = without_system_role(messages)
        options = request.chat_template_kwargs
        told: dict[str, Any] = {}
        if options is not None and options.enable_thinking is not None:
            told["enable_thinking"] = options.enable_thinking
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told)
        except Exception as error:  # a template may raise anything, jinja2's own errors included
            raise NptiError(f"The model's chat template does not take these messages ({error}).") from None
        return self._encoded(str(text), special=False)

    def _encoded(self, text: str, special: bool) -> list[int]:
        """Tokens of a text, with those that the tokenizer begins a text with or without (a chat template has them)."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NptiError("The text holds half of a surrogate pair, so it is no Unicode; send it whole.") from None
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])


def _put(pieces: asyncio.Queue[tuple[int, Piece]], at: int, piece: Piece) -> None:
    pieces.put_nowait((at, piece))


def without_system_role(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages for a template without a place for the system's: they are put before the next turn of the user.

    >>> without_system_role([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    [{'role': 'user', 'content': 'Be kind.\\n\\nHi'}]
    """
    turns: list[dict[str, str]] = []
    said: list[str] = []
    for message in messages:
        if message["role"] == "system":
            said.append(message["content"])
        elif message["role"] == "user":
            turns.append({"role": "user", "content": "\n\n".join([*said, message["content"]])})
            said = []
        else:
            turns.append(message)
    return [*turns, {"role": "user", "content": "\n\n".join(said)}] if said else turns
