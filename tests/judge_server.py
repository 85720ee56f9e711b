"""A judge on this machine that speaks OpenAI's chat completions over real HTTP, rates by a known rule, and fails."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRANSIENT = ("429", "500", "slow", "cut off")
"""Asked again, the same question may be answered."""
FINAL = ("off schema", "off scale", "out of tokens", "refusal")
"""A reply, paid for, without a score."""
FAULTS = TRANSIENT + FINAL
ENOUGH = "enough"
"""A reply with a score."""
SECRET = "sk-test-5e72c1f0a9"


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        model: Who is to judge.
        rubric: The system's message.
        material: The user's message.
        fate: ``ENOUGH`` or the fault.
    """

    model: str
    rubric: str
    material: str
    fate: str


class JudgeServer(ThreadingHTTPServer):
    """The server.

    Args:
        rule: From what is asked to the score; None is a refusal.
        faults: Share of requests that go wrong, each kind as often.
        seed: Decides which.
        slowness: Seconds that a slow reply takes.
        pause: Seconds that any other takes.
    """

    daemon_threads = True

    def __init__(
        self,
        rule: Callable[[Asked], int | None],
        faults: float = 0.0,
        seed: int = 0,
        slowness: float = 2.0,
        pause: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule, self.faults, self.seed, self.slowness, self.pause = rule, faults, seed, slowness, pause
        self.asked: list[Asked] = []
        self.under_way = self.most_under_way = 0
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def receive(self, body: dict[str, Any]) -> Asked:
        """Notes a request and decides its fate, by what is asked and how often it was: threads change nothing."""
        rubric, material = (message["content"] for message in body["messages"])
        with self._lock:
            times = self._times[rubric, material]
            self._times[rubric, material] += 1
            rng = random.Random(f"{self.seed} {times} {rubric} {material}")
            fate = rng.choice(FAULTS) if rng.random() < self.faults else ENOUGH
            self.asked.append(asked := Asked(body["model"], rubric, material, fate))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        return asked

    def done(self) -> None:
        with self._lock:
            self.under_way -= 1


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every reply waits 40 ms for its second packet

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = self.server.receive(body)
        try:
            time.sleep(self.server.slowness if asked.fate == "slow" else self.server.pause)
            self._reply(asked)
        except (BrokenPipeError, ConnectionResetError):  # the one who asked was killed, or tired of waiting
            self.close_connection = True
        finally:
            self.server.done()

    def _reply(self, asked: Asked) -> None:
        if asked.fate in ("429", "500"):
            self._send(int(asked.fate), {"error": {"message": f"no luck with {asked.material}"}})
            return
        score = self.server.rule(asked)
        content: str | None = json.dumps({"reason": f"Because of {score}.", "score": score})
        refusal, ended = None, "stop"
        if asked.fate == "off schema":
            content = f"I would say that it is quite like a {score}, or so."
        elif asked.fate == "off scale":
            content = json.dumps({"reason": "Out of ten.", "score": 9})
        elif asked.fate == "out of tokens":
            content, ended = '{"reason": "It goes on and on and', "length"
        elif asked.fate == "refusal" or score is None:
            content, refusal = None, "I'm sorry, I can't rate people."
        message = {"role": "assistant", "content": content, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": ended, "logprobs": None}
        usage = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
        completion = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self._send(200, completion | {"usage": usage}, whole=asked.fate != "cut off")

    def _send(self, status: int, body: dict[str, Any], whole: bool = True) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "2")
        self.end_headers()
        self.wfile.write(data if whole else data[: len(data) // 2])
        self.close_connection = not whole

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(server: JudgeServer) -> Iterator[JudgeServer]:
    """Serves within the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
