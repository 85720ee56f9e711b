"""What stands before the application: the API key, and the largest body that is read."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 4 * 2**20
"""Bytes; a prompt of 128,000 tokens is about half a megabyte."""
MAX_MESSAGE = 2000
"""Characters of a refusal and of the name of a field in it, which may show what the client sent."""


def error_reply(
    status: int, message: str, kind: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """A refusal as the OpenAI interface tells it.

    >>> error_reply(400, "No.", "invalid_request_error").body
    b'{"error":{"message":"No.","type":"invalid_request_error","param":null,"code":null}}'
    """
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 503 else None
    error = {"message": _sendable(message), "type": kind, "param": param and _sendable(param), "code": code}
    return JSONResponse({"error": error}, status, headers)


def _sendable(text: str) -> str:
    """What a client sent, cut, and without halves of surrogate pairs, which cannot be sent."""
    cut = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"
    return cut.encode("utf-8", "replace").decode("utf-8")


class _TooLargeError(Exception):
    """More has come than is read."""


class Guard:
    """Refuses requests without the key, and bodies that are too large, before anything of them is read.

    A middleware of the ASGI kind, because a body has to be counted while it comes in: its length may not be told.

    Args:
        application: What stands behind it.
        api_key: Asked for below ``/v1``; None lets everybody in.
        max_body: Bytes.
    """

    def __init__(self, application: Application, api_key: str | None, max_body: int = MAX_BODY) -> None:
        self._application = application
        self._key = None if api_key is None else api_key.encode()
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request or hands it on."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"].startswith("/v1") and not self._knows(headers.get(b"authorization", b"")):
            reply = error_reply(401, "Incorrect API key provided.", "authentication_error", code="invalid_api_key")
            await reply(scope, receive, send)
            return
        began = too_large = False
        read = 0

        async def counted() -> Message:
            nonlocal read, too_large
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                too_large = True
                raise _TooLargeError
            return message

        async def noticed(message: Message) -> None:
            nonlocal began
            if not too_large:  # else it is what the application makes of a body that it could not read
                began = True
                await send(message)

        length = headers.get(b"content-length", b"0")
        too_large = length.isdigit() and int(length[:20]) > self._max_body
        if not too_large:
            with suppress(_TooLargeError):
                await self._application(scope, counted, noticed)
        if too_large and not began:
            reply = error_reply(413, f"The body is larger than {self._max_body} bytes.", "invalid_request_error")
            await reply(scope, receive, send)

    def _knows(self, authorization: bytes) -> bool:
        """Whether the key is right; takes as long for a wrong one however much of it is right."""
        if self._key is None:
            return True
        scheme, _, given = authorization.partition(b" ")
        return hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"
