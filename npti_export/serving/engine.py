"""The thread that generates: it takes waiting answers into the running batch, feeds it, and hands out what was written.

Requests come from the event loop and pieces of answers go back to it; the model is touched by this thread alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread

from torch import nn
from transformers import PreTrainedTokenizerBase

from npti_export.serving.answer_text import AnswerText
from npti_export.serving.running_batch import Row, RunningBatch
from npti_export.serving.sampling import Sampling, TokenLogprobs, next_tokens, token_logprobs
from npti_export.steering.personality import Personality

logger = logging.getLogger("npti_export")

PREFILL_TOKENS = 16384
"""Tokens, padding included, of the prompts that join in one forward; one prompt always may. A bound on memory."""


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer.

    Args:
        text: New text; empty while a character is not whole or a stop string may have begun.
        logprobs: Of the token, if they were asked for.
        finish: Why the answer is at its end: ``stop`` or ``length``; None while it goes on.
        failed: Whether the server could not go on with it.
    """

    text: str = ""
    logprobs: TokenLogprobs | None = None
    finish: str | None = None
    failed: bool = False


@dataclass(eq=False)
class Answer:
    """One answer to a request, waiting or in the making.

    Args:
        row: Its tokens and its personality.
        text: Its text.
        sampling: How its tokens are chosen.
        draws: Where the random numbers of its tokens come from.
        max_tokens: Largest number of tokens.
        ends: Tokens that end it.
        logprobs: How many likeliest tokens are told with each token; None where no log-probabilities are.
        deliver: Called in the event loop with each piece.
    """

    row: Row
    text: AnswerText
    sampling: Sampling
    draws: random.Random
    max_tokens: int
    ends: frozenset[int]
    logprobs: int | None
    deliver: Callable[[Piece], None]
    cancelled: bool = field(default=False, init=False)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.row.ids) - self.row.prompt_length

    def take(self, token: int, logprobs: TokenLogprobs | None) -> Piece:
        """Adds a token."""
        self.row.add(token)
        if token in self.ends:
            return Piece(self.text.end(), logprobs, "stop")
        text = self.text.add(token)
        if not self.text.stopped and self.tokens >= self.max_tokens:
            text += self.text.end()
            if not self.text.stopped:
                return Piece(text, logprobs, "length")
        return Piece(text, logprobs, "stop" if self.text.stopped else None)


class FullError(Exception):
    """More answers were asked for than the server takes at a time."""


class Engine:
    """Generates answers until it is closed.

    Args:
        model: The model, with the personality loaded.
        tokenizer: Its tokenizer.
        personality: Loaded with positions ``all`` and a slot for each row and one more.
        rows: How many answers are generated together.
        most: How many answers may be waiting or in the making.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, personality: Personality, rows: int, most: int
    ) -> None:
        self.tokenizer = tokenizer
        self.most = most
        self._rows = rows
        self._personality = personality
        self._batch = RunningBatch(model, personality)
        self._running: list[Answer] = []
        self._waiting: deque[Answer] = deque()
        self._condition = Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._run, name="npti-export engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins; pieces are delivered in this event loop."""
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the answers that it has, and takes the personality out of the model."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._personality.unload()

    @property
    def alive(self) -> bool:
        """Whether answers are generated."""
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        """How many answers are waiting or in the making."""
        return len(self._waiting) + len(self._running)

    def submit(self, answers: list[Answer]) -> None:
        """Puts the answers of a request into the queue, all or none.

        Raises:
            FullError: If there is no room for them.
        """
        with self._condition:
            if self._closing or self.busy + len(answers) > self.most:
                raise FullError
            self._waiting += answers
            self._condition.notify()

    def cancel(self, answers: list[Answer]) -> None:
        """Ends answers that nobody waits for any more; those that are done stay as they are."""
        with self._condition:
            for answer in answers:
                answer.cancelled = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            try:
                self._leave()
                joining = self._next_joining()
                if joining is None:
                    return
                if joining and not self._join(joining):
                    continue
                pieces = self._step()
            except Exception:  # out of memory, most likely: the answers are lost, the server is not
                logger.exception("A step failed; the %d answers of its batch are given up.", len(self._running))
                pieces = [(answer, Piece(failed=True)) for answer in self._running]
                self._batch.clear()
                with self._condition:
                    self._running = []
            self._hand_out(pieces)

    def _leave(self) -> None:
        """Lets go of the rows of answers that are done, and of answers that nobody waits for."""
        with self._condition:
            self._running = [answer for answer in self._running if not answer.cancelled]
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        staying = {answer.row for answer in self._running}
        self._batch.leave([row for row in self._batch.rows if row not in staying])

    def _next_joining(self) -> list[Answer] | None:
        """Waits for something to do and returns the answers that are to join; None when it is to end."""
        with self._condition:
            while not (self._running or self._waiting or self._closing):
                self._condition.wait()
            if not self._running and not self._waiting:
                return None
            joining: list[Answer] = []
            longest = 0
            while self._waiting and len(self._running) + len(joining) < self._rows:
                longest = max(longest, len(self._waiting[0].row.ids))
                if joining and longest * (len(joining) + 1) > PREFILL_TOKENS:
                    break
                joining.append(self._waiting.popleft())
            # Before they have joined, so that they count as busy all the time.
            self._running += joining
            return joining

    def _join(self, joining: list[Answer]) -> bool:
        """Takes answers into the batch; those whose prompts cannot be read are given up, the others are untouched."""
        try:
            self._batch.join([answer.row for answer in joining])
        except Exception:
            logger.exception("%d prompts could not be read; their answers are given up.", len(joining))
            with self._condition:
                self._running = [answer for answer in self._running if answer not in joining]
            self._hand_out([(answer, Piece(failed=True)) for answer in joining])
            return False
        return True

    def _step(self) -> list[tuple[Answer, Piece]]:
        """One token for every answer; rows of those that are done leave once their pieces have been handed out.

        Leaving copies the cache, and if memory does not suffice for that, nobody may be left waiting for an end.
        """
        logits = self._batch.step()
        tokens = next_tokens(
            logits,
            [answer.sampling for answer in self._running],
            [answer.row.ids for answer in self._running],
            [answer.draws.random() for answer in self._running],
        )
        pieces = []
        for answer, token, row in zip(self._running, tokens, logits, strict=True):
            logprobs = None if answer.logprobs is None else token_logprobs(row, token, answer.logprobs)
            pieces.append((answer, answer.take(token, logprobs)))
        done = [answer for answer, piece in pieces if piece.finish]
        with self._condition:
            self._running = [answer for answer in self._running if answer not in done]
        return pieces

    def _hand_out(self, pieces: list[tuple[Answer, Piece]]) -> None:
        """Delivers in the event loop, in one call a step."""

        def deliver() -> None:
            for answer, piece in pieces:
                answer.deliver(piece)

        assert self._loop is not None
        with suppress(RuntimeError):  # the event loop was ended while answers were in the making; nobody waits for them
            self._loop.call_soon_threadsafe(deliver)
