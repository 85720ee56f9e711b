"""The OpenAI interface over the service: its routes, how refusals are told, and answers whole or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from npti_export.errors import NptiError
from npti_export.serving.engine import Answer, FullError, Piece
from npti_export.serving.http_guard import Guard, error_reply
from npti_export.serving.model_names import SEPARATOR
from npti_export.serving.openai_replies import ChatReplies, Choice, CompletionReplies, Usage, joined
from npti_export.serving.openai_requests import ChatRequest, CompletionRequest, UnknownModelError, personality_of
from npti_export.serving.service import Service

GONE = 499
"""Status of a request whose client went away, as some servers log it; nobody reads it."""


def openai_app(service: Service, api_key: str | None) -> FastAPI:
    """The application that a server runs.

    Args:
        service: What it serves.
        api_key: Asked of every request below ``/v1``; None lets everybody in.
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
    @app.get("/v1/models/")
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
