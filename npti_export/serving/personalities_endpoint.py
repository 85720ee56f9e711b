"""``/personalities``: names are listed, added and removed while a server runs, by whoever knows the key.

Beside the OpenAI interface and not under ``/v1``, so that the key of the server's clients does not open it.
"""

from __future__ import annotations

import hmac
import json

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse

from npti_export.errors import NptiError
from npti_export.serving.added import AddedPersonalities

MAX_BODY = 10_000
"""Bytes of a request; a name and a spec are a hundred."""


def personalities_router(added: AddedPersonalities, key: str) -> APIRouter:
    """The routes: ``GET`` and ``POST /personalities``, ``DELETE /personalities/NAME``.

    Args:
        added: What is listed and changed.
        key: What every request must bring as ``Authorization: Bearer KEY``.
    """

    async def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise HTTPException(401, "Send the server's NPTI_ADMIN_KEY as Authorization: Bearer KEY.")

    router = APIRouter(prefix="/personalities", dependencies=[Depends(authorised)])

    @router.get("")
    async def listing() -> JSONResponse:
        return _state(added)

    @router.post("")
    async def add(request: Request) -> JSONResponse:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"The request is longer than {MAX_BODY} bytes.")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict) or sorted(asked) != ["name", "personality"]:
            raise HTTPException(
                400, 'A JSON object {"name": "warm-agent", "personality": "agreeableness+"} is expected.'
            )
        if not all(isinstance(value, str) for value in asked.values()):
            raise HTTPException(400, "Both name and personality are text.")
        try:
            added.add(asked["name"], asked["personality"])
        except NptiError as error:
            raise HTTPException(400, str(error)) from None
        return _state(added)

    @router.delete("/{name}")
    async def remove(name: str) -> JSONResponse:
        try:
            added.remove(name)
        except NptiError as error:
            raise HTTPException(404, str(error)) from None
        return _state(added)

    return router


def _state(added: AddedPersonalities) -> JSONResponse:
    return JSONResponse({"personalities": added.listing(), "slots": added.slots, "free": added.free})
