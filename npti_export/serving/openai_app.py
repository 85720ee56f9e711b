"""The OpenAI interface over the engine: its routes, what is refused, and answers whole or as a stream."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from transformers import GenerationConfig, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.identification.answers import has_system_role
from npti_export.serving.answer_text import AnswerText
from npti_export.serving.engine import Answer, Engine, FullError, Piece
from npti_export.serving.http_guard import Guard, error_reply
from npti_export.serving.model_names import SEPARATOR
from npti_export.serving.openai_replies import ChatReplies, Choice, CompletionReplies, Usage, joined
from npti_export.serving.openai_requests import ChatRequest, CompletionRequest, UnknownModelError, personality_of
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.running_batch import Row
from npti_export.steering.positions import Positions
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec

GONE = 499
"""Status of a request whose client went away, as some servers log it; nobody reads it."""


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
        # The engine decodes with the other one meanwhile; a tokenizer is not made for two threads.
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

        Raises:
            UnknownModelError: If it names another model.
            NptiError: If it cannot be served.
        """
        # Reading takes milliseconds, more for long prompts and new personalities; streams of others go on meanwhile.
        loop = asyncio.get_running_loop()
        spec, prompts = await loop.run_in_executor(self._reading, self._read, request)
        positions = Positions.GENERATED if spec.is_neutral else self.served.positions(spec)
        answers: list[Answer] = []
        for ids in prompts:
            for _ in range(request.choices):
                at, sampling = len(answers), request.sampling(self._generation)
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
        return personality_of(self.served, self.name, *asked), self._prompts(request)

    def _prompts(self, request: ChatRequest | CompletionRequest) -> list[list[int]]:
        """The tokens of a request's prompts."""
        if isinstance(request, ChatRequest):
            prompts = [self._chat(request)]
        else:
            prompts = [
                self._encoded(prompt, special=True) if isinstance(prompt, str) else prompt for prompt in request.prompts
            ]
        if (asked := len(prompts) * request.choices) > self.engine.most:
            raise NptiError(f"{asked} answers were asked for; this server takes {self.engine.most} at a time.")
        for ids in prompts:
            if not ids:
                raise NptiError("A prompt is empty; at least one token is needed.")
            if len(ids) >= self._context:
                raise NptiError(f"A prompt of {len(ids)} tokens fills the context of {self._context}; shorten it.")
            if (largest := max(ids)) >= self._vocabulary:
                raise NptiError(f"There is no token {largest}; the model has {self._vocabulary}.")
        if not prompts:
            raise NptiError("There is no prompt; give one.")
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


def openai_app(service: Service, api_key: str | None) -> FastAPI:
    """The application that a server runs.

    Args:
        service: What it serves.
        api_key: Asked of every request but ``/health``; None lets everybody in.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.engine.start(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(Guard, api_key=api_key)

    @app.exception_handler(UnknownModelError)
    async def unknown(_request: Request, error: UnknownModelError) -> JSONResponse:
        return error_reply(404, str(error), "invalid_request_error", param="model", code="model_not_found")

    @app.exception_handler(NptiError)
    async def refused(_request: Request, error: NptiError) -> JSONResponse:
        return error_reply(400, str(error), "invalid_request_error")

    @app.exception_handler(RequestValidationError)
    async def not_understood(_request: Request, error: RequestValidationError) -> JSONResponse:
        message, field = sentence_of(error)
        return error_reply(400, message, "invalid_request_error", param=field)

    @app.exception_handler(HTTPException)
    async def no_such_thing(_request: Request, error: HTTPException) -> JSONResponse:
        return error_reply(error.status_code, str(error.detail), "invalid_request_error")

    @app.exception_handler(FullError)
    async def full(_request: Request, _error: FullError) -> JSONResponse:
        return error_reply(503, f"{service.engine.most} answers are in the making; try again.", "server_overloaded")

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> JSONResponse:
        return error_reply(500, "Something went wrong in the server; its log says what.", "server_error")

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse(
            {"status": "ok" if alive else "down", "answers": service.engine.busy}, 200 if alive else 503
        )

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [service.name, *(f"{service.name}{SEPARATOR}{preset}" for preset in service.served.presets)]
        return {"object": "list", "data": [_model(service, name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        personality_of(service.served, service.name, name)
        return _model(service, name)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: ChatRequest, connection: Request) -> Response:
        replies = ChatReplies(request.model or service.name, service.engine.tokenizer)
        return await _answered(service, request, replies, connection)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: CompletionRequest, connection: Request) -> Response:
        replies = CompletionReplies(request.model or service.name, service.engine.tokenizer)
        return await _answered(service, request, replies, connection)

    return app


def sentence_of(error: RequestValidationError) -> tuple[str, str | None]:
    """The first thing that is wrong with a body, in a sentence, and the field that it is in."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        return f"The body is no JSON ({first['ctx']['error']}).", None
    if first["type"] == "extra_forbidden":
        return f"Unrecognized request argument supplied: {field}.", field
    if first["type"] in ("missing", "model_attributes_type") and field is None:
        return "The body is no JSON object; send one, with Content-Type: application/json.", None
    said = str(first["msg"]).removeprefix("Value error, ")
    return (f"{field}: {said}." if field else f"{said}."), field


def _model(service: Service, name: str) -> dict[str, Any]:
    parent = None if name == service.name else service.name
    return {"id": name, "object": "model", "created": 0, "owned_by": "npti-export", "parent": parent}


async def _answered(
    service: Service,
    request: ChatRequest | CompletionRequest,
    replies: ChatReplies | CompletionReplies,
    connection: Request,
) -> Response:
    pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
    answers = await service.answers(request, pieces)
    service.engine.submit(answers)
    if request.stream:
        sent = _streamed(service, answers, pieces, replies, request)
        return StreamingResponse(sent, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    collecting = asyncio.create_task(_collected(answers, pieces, request.likeliest is not None))
    leaving = asyncio.create_task(_gone(connection))
    try:
        await asyncio.wait([collecting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=GONE)
        choices = collecting.result()
    finally:
        leaving.cancel()
        collecting.cancel()
        service.engine.cancel(answers)
    if choices is None:
        return error_reply(500, "The server could not go on with the answer; try again.", "server_error")
    return JSONResponse(replies.whole(choices, usage_of(answers, request.choices)))


async def _collected(
    answers: list[Answer], pieces: asyncio.Queue[tuple[int, Piece]], with_logprobs: bool
) -> list[Choice] | None:
    """All answers once they are whole; None if the server could not go on with one of them."""
    written: list[list[Piece]] = [[] for _ in answers]
    left = len(answers)
    while left:
        at, piece = await pieces.get()
        if piece.failed:
            return None
        written[at].append(piece)
        left -= piece.finish is not None
    return [joined(of_answer, with_logprobs) for of_answer in written]


async def _gone(connection: Request) -> None:
    """Returns when the client goes away."""
    while (await connection.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    service: Service,
    answers: list[Answer],
    pieces: asyncio.Queue[tuple[int, Piece]],
    replies: ChatReplies | CompletionReplies,
    request: ChatRequest | CompletionRequest,
) -> AsyncIterator[str]:
    """The events of a stream; when the client goes away this is cancelled, and with it the answers."""
    try:
        if opening := replies.opening(len(answers)):
            yield _event(opening)
        left = len(answers)
        while left:
            at, piece = await pieces.get()
            if piece.failed:
                message = "The server could not go on with the answer; try again."
                yield _event({"error": {"message": message, "type": "server_error", "param": None, "code": 500}})
                return
            if piece.text or piece.logprobs or piece.finish:
                yield _event(replies.chunk(at, piece))
            left -= piece.finish is not None
        if request.include_usage:
            yield _event(replies.closing(usage_of(answers, request.choices)))
        yield "data: [DONE]\n\n"
    finally:
        service.engine.cancel(answers)


def usage_of(answers: list[Answer], choices: int) -> Usage:
    """The tokens of a request's prompts, each counted once, and of all its answers."""
    prompt = sum(answer.row.prompt_length for answer in answers[::choices])
    return Usage(prompt, sum(answer.tokens for answer in answers))


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
