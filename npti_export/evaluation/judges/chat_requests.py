"""Requests to OpenAI's chat completions through the openai client and its retries: what is sent, what is a reply.

What servers can do differs: a request that one turns down is sent again with less asked of it, and so from then on. The
key goes nowhere but to the server, and neither it nor what is asked reaches a log.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion, ChatCompletionTokenLogprob

from npti_export.errors import NptiError
from npti_export.evaluation.judges.reply import RESPONSE_FORMAT, shorten

GPT_4O = "gpt-4o-2024-08-06"
SEED = 0
RETRIES = 5
"""With 20 % of replies broken, one question in 15,000 is left without a reply."""
TIMEOUT = 60.0
"""Seconds; a judge writes its two sentences in two or three."""

# Two sentences and a number take about 80 tokens; the limit ends a small local judge that does not stop. `max_tokens`
# is the spelling that GPT-4o and the other servers share; models that think first know only the other, take no
# temperature, and need room to think.
_PLAIN: dict[str, Any] = {"temperature": 0.0, "max_tokens": 500}
_SCHEMA: dict[str, Any] = {"response_format": RESPONSE_FORMAT}
_PROBABILITIES: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}
_WAYS: tuple[dict[str, Any], ...] = (
    _PLAIN | _SCHEMA | _PROBABILITIES,
    _PLAIN | _SCHEMA,
    _PLAIN | _PROBABILITIES,
    _PLAIN,
    _SCHEMA | {"max_completion_tokens": 4000},
)

_OPENAI_URL = "https://api.openai.com/v1"
_TURNED_DOWN = (openai.BadRequestError, openai.UnprocessableEntityError)


class UnansweredError(Exception):
    """The server gave no reply to a question, so nothing was paid for. Says what happened, a colon and the details."""


class TurnedDownError(Exception):
    """The server replied that it takes this question in no way; nothing was paid for. Says so likewise."""


@dataclass(frozen=True)
class Reply:
    """What the server replied, and that was paid for.

    Args:
        text: What the judge wrote, or its refusal.
        failure: Why it is no reply to be read (a refusal, cut off); None where it may be one.
        scored_tokens: The reply's tokens with their alternatives; empty where the server gives none.
        tokens: How many were read and written; None where the server does not say.
    """

    text: str
    failure: str | None
    scored_tokens: Sequence[ChatCompletionTokenLogprob]
    tokens: tuple[int, int] | None


class ChatRequests:
    """One model of one server, asked one question a request.

    Args:
        model: The model.
        base_url: The server; None takes ``OPENAI_BASE_URL``, else OpenAI.

    Raises:
        NptiError: If there is no key for OpenAI, or the address is none.
    """

    def __init__(self, model: str, base_url: str | None) -> None:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL
        self.place = _place(url)
        self.at_openai = _is_openai(url)
        self._model = model
        # Local servers want no key, but the client insists on one.
        self._secret = _key(url)
        self._client = openai.OpenAI(api_key=self._secret or "none", base_url=url, max_retries=RETRIES, timeout=TIMEOUT)
        self._way = 0

    def send(self, instructions: str, material: str) -> Reply:
        """Asks once, with the client's retries.

        Args:
            instructions: The system message.
            material: The user's.

        Raises:
            UnansweredError: If the server failed, every time.
            TurnedDownError: If it does not take this question.
            NptiError: If no other question would do better: a wrong key, model or address.
        """
        silent = _ASKING.set(True)
        try:
            reply: Any = self._in_some_way(instructions, material)
        except _TURNED_DOWN as error:
            raise TurnedDownError(f"the server turned the request down: {self._said(error)}") from None
        except openai.AuthenticationError as error:
            # What servers say to 401 and 403 often repeats a part of the key.
            raise self._useless(error, "does not accept the key", "check OPENAI_API_KEY") from None
        except openai.PermissionDeniedError as error:
            mend = f"check what the key in OPENAI_API_KEY may do with {self._model}"
            raise self._useless(error, "does not let this key use it", mend) from None
        except openai.NotFoundError as error:
            what = f"knows no model {self._model} at this address ({self._said(error)})"
            raise self._useless(error, what, "check both") from None
        except openai.APIStatusError as error:
            raise UnansweredError(f"the server failed: {self._said(error)} (status {error.status_code})") from None
        except openai.APITimeoutError:
            raise UnansweredError(f"the server did not reply in time: {TIMEOUT:g} s") from None
        except openai.APIConnectionError as error:
            cause = self._safe(str(error.__cause__ or error))
            raise UnansweredError(f"the server cannot be reached: {cause}") from None
        except ValueError:  # the body breaks off
            raise UnansweredError("the server's reply is no JSON: it breaks off or is none") from None
        finally:
            _ASKING.reset(silent)
        return self._read(reply)

    def _in_some_way(self, instructions: str, material: str) -> ChatCompletion:
        """In the way that worked last, else in the next that works; the first error if none does."""
        first: openai.APIStatusError | None = None
        for way in range(self._way, len(_WAYS)):
            try:
                reply: ChatCompletion = self._client.chat.completions.create(
                    model=self._model,
                    messages=[
                        {"role": "system", "content": instructions},
                        {"role": "user", "content": material},
                    ],
                    seed=SEED,
                    **_WAYS[way],
                )
            except _TURNED_DOWN as error:
                first = first or error
                continue
            # Only now it is sure that it was not the question that was turned down.
            self._way = max(self._way, way)
            return reply
        assert first is not None
        raise first

    def _read(self, reply: Any) -> Reply:
        # The client checks nothing: a web page comes back as text, an object without choices as it is.
        if not isinstance(reply, ChatCompletion):
            raise NptiError(
                f"What answers at {self.place} does not speak OpenAI's chat completions; give the base URL of a "
                f"server that does, which usually ends in /v1."
            )
        try:
            choice = reply.choices[0]
            message = choice.message
            content = message.content
        except (AttributeError, TypeError, LookupError):
            raise UnansweredError("the server's reply holds no message") from None
        text = content if isinstance(content, str) else ""
        refusal, ended = getattr(message, "refusal", None), getattr(choice, "finish_reason", None)
        failure = None
        if refusal or ended == "content_filter":
            text = str(refusal or text)
            failure = f"the judge refused: {shorten(text or 'content filter')}"
        elif ended == "length":
            failure = f"the reply was cut off: {shorten(text)!r}"
        scored = getattr(getattr(choice, "logprobs", None), "content", None) or []
        usage = getattr(reply, "usage", None)
        read, written = (getattr(usage, f"{what}_tokens", None) for what in ("prompt", "completion"))
        tokens = (read, written) if isinstance(read, int) and isinstance(written, int) else None
        return Reply(text, failure, scored, tokens)

    def _useless(self, error: openai.APIStatusError, what: str, mend: str) -> NptiError:
        return NptiError(f"The judge at {self.place} {what} (status {error.status_code}); {mend}.")

    def _said(self, error: openai.APIStatusError) -> str:
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        return self._safe(str(said or "without a word"))

    def _safe(self, text: str) -> str:
        return shorten(text.replace(self._secret, "[key]") if self._secret else text)


_ASKING: ContextVar[bool] = ContextVar("npti_asking", default=False)


class _Silence(logging.Filter):
    """Lets nothing below a warning through while a judge asks: some releases of the client log what they send."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _ASKING.get()


for _logger in ("openai._base_client", "httpx", "httpx2"):
    logging.getLogger(_logger).addFilter(_Silence())


def _key(url: str) -> str | None:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    # Such a key would come back in the client's own message.
    if not (key.isascii() and key.isprintable()):
        raise NptiError("OPENAI_API_KEY holds characters that no key has; copy the key again.")
    if not key and _is_openai(url):
        raise NptiError(
            "The OpenAI judge needs a key: set OPENAI_API_KEY, or OPENAI_BASE_URL to another server that speaks chat "
            "completions, or use the local judge."
        )
    return key or None


def _is_openai(url: str) -> bool:
    return f".{urlsplit(url).hostname}".endswith(".openai.com")


def _place(url: str) -> str:
    """The address as it may be shown: without any user, password or query."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NptiError("The judge's base URL is not one; it should be like http://localhost:8000/v1.")
    return parts.netloc.rpartition("@")[2] + parts.path
