"""What clients get: the answers of the OpenAI interface as plain dictionaries, whole and in chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from npti_export.serving.engine import Piece
from npti_export.serving.sampling import TokenLogprobs


@dataclass(frozen=True)
class Usage:
    """How many tokens a request took."""

    prompt: int
    completion: int

    @property
    def reply(self) -> dict[str, int]:
        """As it is sent."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


@dataclass(frozen=True)
class Choice:
    """One whole answer: its pieces joined.

    Args:
        text: All of it.
        finish: Why it ended.
        logprobs: Of its tokens, if they were asked for.
    """

    text: str
    finish: str
    logprobs: list[TokenLogprobs] | None


def joined(pieces: Sequence[Piece], with_logprobs: bool) -> Choice:
    """The answer that pieces are, the last one ending it."""
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Choice("".join(piece.text for piece in pieces), str(pieces[-1].finish), logprobs if with_logprobs else None)


@dataclass(frozen=True)
class Replies:
    """The replies to one request.

    Args:
        model: What the client called the model.
        tokenizer: For the tokens beside log-probabilities.
        id: Of the answer.
        created: When it was begun, in seconds since 1970.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _reply(self, kind: str, prefix: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        reply = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return reply | {"choices": choices} | ({"usage": usage.reply} if usage else {})

    def _token(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


class ChatReplies(Replies):
    """Those to ``/v1/chat/completions``."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The reply that is not streamed."""
        told = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return self._reply("chat.completion", "chatcmpl", told, usage)

    def opening(self, choices: int) -> dict[str, Any] | None:
        """What a stream begins with."""
        delta = {"role": "assistant", "content": ""}
        told = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for index in range(choices)]
        return self._reply("chat.completion.chunk", "chatcmpl", told, None)

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of an answer."""
        told = {
            "index": index,
            "delta": {"content": piece.text} if piece.text or piece.logprobs else {},
            "logprobs": self._logprobs(None if piece.logprobs is None else [piece.logprobs]),
            "finish_reason": piece.finish,
        }
        return self._reply("chat.completion.chunk", "chatcmpl", [told], None)

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The number of tokens, at the end of a stream."""
        return self._reply("chat.completion.chunk", "chatcmpl", [], usage)

    def _logprobs(self, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None

        def told(token: int, logprob: float) -> dict[str, Any]:
            text = self._token(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        tokens = [
            told(one.token, one.logprob) | {"top_logprobs": [told(*likely) for likely in one.top]} for one in logprobs
        ]
        return {"content": tokens, "refusal": None}


class CompletionReplies(Replies):
    """Those to ``/v1/completions``."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The reply that is not streamed."""
        told = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return self._reply("text_completion", "cmpl", told, usage)

    def opening(self, choices: int) -> dict[str, Any] | None:
        """Nothing: such a stream begins with its text."""
        return None

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of an answer."""
        logprobs = self._logprobs(None if piece.logprobs is None else [piece.logprobs])
        told = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
        return self._reply("text_completion", "cmpl", [told], None)

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The number of tokens, at the end of a stream."""
        return self._reply("text_completion", "cmpl", [], usage)

    def _logprobs(self, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        return {
            "tokens": [self._token(one.token) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [
                {self._token(token): logprob for token, logprob in ((one.token, one.logprob), *one.top)}
                for one in logprobs
            ],
        }
