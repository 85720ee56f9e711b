"""A server that speaks OpenAI's chat completions (vLLM, llama.cpp, a hosted model): many requests at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from npti_export.errors import NptiError

SEED = 0
TIMEOUT = 600.0
"""Seconds for one answer: a large model behind a long queue takes minutes."""
RETRIES = 5
"""Of a request that was lost or turned away for the moment; the client waits longer each time, at most 8 seconds."""


@dataclass(frozen=True)
class Request:
    """What one chat completion is asked for.

    Args:
        messages: The chat, each with role and content.
        max_tokens: Largest number of tokens of the answer.
        repetition_penalty: As transformers, vLLM and llama.cpp mean it, who are also asked not to think; None, or a
            server that knows neither, does without.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class Reply:
    """What the server's model said.

    Args:
        text: Its words, as they came.
        finished: Whether it came to an end, or broke off at the largest number of tokens.
    """

    text: str
    finished: bool


class Endpoint:
    """A model behind OpenAI's chat completions; the key comes from ``OPENAI_API_KEY`` and goes nowhere else.

    Args:
        url: Base URL, which usually ends in /v1.
        model: The server's name of the model; None takes the only one that it serves.
        concurrency: How many requests are under way at a time.

    Raises:
        NptiError: If the address is none, there is no such model, or the server cannot be reached.
    """

    def __init__(self, url: str, model: str | None = None, concurrency: int = 32) -> None:
        parts = _parts(url)
        self.place = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # it would come back in the client's own message
            raise NptiError("OPENAI_API_KEY holds characters that no key has; copy the key again.")
        # Local servers want no key, but the client insists on one.
        self._client = openai.OpenAI(api_key=self._key or "none", base_url=url, max_retries=RETRIES, timeout=TIMEOUT)
        self._concurrency = concurrency
        self._takes_more = True
        self.model = model or self._only_model()

    def ask_all(self, requests: Sequence[Request], told: Callable[[int, Reply], None]) -> None:
        """Asks many at a time.

        Args:
            requests: What to ask.
            told: Called in this thread with the place of a request and its reply, as they come. After an error or
                Ctrl-C nothing more is asked, but it is told of the answers that were under way.

        Raises:
            NptiError: If the server is lost, or turns a request down.
        """
        pool = ThreadPoolExecutor(self._concurrency)
        places = {pool.submit(self._ask, request): at for at, request in enumerate(requests)}
        waiting = set(places)
        try:
            for future in as_completed(places):
                reply = future.result()
                waiting.remove(future)
                told(places[future], reply)
        finally:
            pool.shutdown(cancel_futures=True)
            for future in filter(_has_reply, waiting):
                told(places[future], future.result())

    def _ask(self, request: Request) -> Reply:
        try:
            completion = self._complete(request)
        except openai.APIStatusError as error:
            raise NptiError(self._turned_down(error)) from None
        except openai.APIConnectionError as error:
            raise NptiError(self._lost(error)) from None
        # The client checks nothing: a web page comes back as text, an object without choices as it is.
        if not isinstance(completion, ChatCompletion) or not completion.choices or not completion.choices[0].message:
            raise NptiError(
                f"What answers at {self.place} does not speak OpenAI's chat completions; give the base URL of a server "
                "that does, which usually ends in /v1."
            )
        choice = completion.choices[0]
        text = choice.message.content or choice.message.refusal or ""
        if not isinstance(text, str):
            raise NptiError(f"The server at {self.place} sent an answer that is no text; use another one.")
        # Half of a character, which JSON can spell, is nothing that a tokenizer or a file takes.
        return Reply(text.encode(errors="replace").decode(), choice.finish_reason != "length")

    def _complete(self, request: Request) -> ChatCompletion:
        if not self._takes_more or request.repetition_penalty is None:
            return self._create(request, {})
        # The penalty as vLLM and as llama.cpp call it. Prompts are rendered without thinking here too.
        more = {
            "repetition_penalty": request.repetition_penalty,
            "repeat_penalty": request.repetition_penalty,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        try:
            return self._create(request, more)
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            completion = self._create(request, {})  # if this is turned down too, these were not what was wrong
            self._takes_more = False
            return completion

    def _create(self, request: Request, more: dict[str, object]) -> ChatCompletion:
        messages: list[ChatCompletionMessageParam] = [dict(message) for message in request.messages]  # type: ignore[misc]
        return self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            temperature=0.0,
            seed=SEED,
            max_tokens=request.max_tokens,
            extra_body=more or None,
        )

    def _only_model(self) -> str:
        try:
            names = [model.id for model in self._client.models.list()]
        except openai.APIStatusError as error:
            raise NptiError(self._turned_down(error)) from None
        except openai.APIConnectionError as error:
            raise NptiError(self._lost(error)) from None
        except (AttributeError, TypeError, ValueError, openai.OpenAIError):
            names = []
        if len(names) != 1 or not isinstance(names[0], str):
            shown = ", ".join(map(str, names[:5])) or "none"
            raise NptiError(
                f"The server at {self.place} lists {len(names)} models ({shown}) where one is expected; name the one "
                "to ask."
            )
        return names[0]

    def _lost(self, error: openai.APIConnectionError) -> str:
        cause = self._safe(str(error.__cause__ or error))
        return (
            f"The server at {self.place} cannot be reached ({cause}); see that it runs, and the same command goes on "
            "with the answers that are there."
        )

    def _turned_down(self, error: openai.APIStatusError) -> str:
        # What servers say to 401 and 403 often repeats a part of the key.
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        what = {401: "does not accept the key", 403: "does not let this key in"}.get(
            error.status_code, f"turned a request down ({self._safe(str(said or 'without a word'))})"
        )
        return (
            f"The server at {self.place} {what} (status {error.status_code}); mend that, and the same command goes on "
            "with the answers that are there."
        )

    def _safe(self, text: str) -> str:
        """At most 200 characters on one line, without the key."""
        line = " ".join((text.replace(self._key, "[key]") if self._key else text).split())
        return line if len(line) <= 200 else line[:200] + "…"


def _parts(url: str) -> SplitResult:
    """The parts of an address that requests can go to."""
    with suppress(ValueError):  # a port that is no number, half of an IPv6 address
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable():
            return parts
    raise NptiError("The endpoint's address is not one; it should be like http://localhost:8000/v1.")


def _has_reply(future: Future[Reply]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
