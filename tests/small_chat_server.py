"""A real HTTP server on this machine that speaks chat completions, answers as it is told, and can be lost."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response


def completion(content: str | None, finish_reason: str = "stop", refusal: str | None = None) -> Response:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Response(json.dumps(body), content_type="application/json")


def failure(status: int, message: str) -> Response:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}})
    # The client waits as long as the server asks it to: tests need not wait for its usual seconds.
    return Response(body, status, content_type="application/json", headers={"retry-after-ms": "1"})


class SmallChatServer:
    """Keeps what it was asked and answers by ``reply(body)``; after ``lost_after`` answers it fails."""

    def __init__(self, server: HTTPServer, models: tuple[str, ...] = ("tiny-chat",)) -> None:
        self.asked: list[dict[str, Any]] = []
        self.authorization: set[str | None] = set()
        self.reply: Callable[[dict[str, Any]], Response] = lambda body: completion("Yes.")
        self.lost_after: int | None = None
        self.models = models
        self.url = server.url_for("/v1")
        self.port = server.port
        self._lock = threading.Lock()
        server.expect_request("/v1/models").respond_with_handler(self._list)
        server.expect_request(re.compile("/v1/chat/completions"), method="POST").respond_with_handler(self._answer)

    def _list(self, _request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in self.models]
        return Response(json.dumps({"object": "list", "data": data}), content_type="application/json")

    def _answer(self, request: Request) -> Response:
        body = request.get_json()
        with self._lock:
            if self.lost_after is not None and len(self.asked) >= self.lost_after:
                return failure(503, "shutting down")
            self.asked.append(body)
            self.authorization.add(request.headers.get("Authorization"))
        return self.reply(body)
