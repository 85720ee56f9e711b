"""The thread that generates: who is told what when memory runs out, when answers are given up, and at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from threading import Event, Thread

import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from small_server import until

from npti_export import load_personality
from npti_export.serving import engine as engine_module
from npti_export.serving.answer_text import AnswerText
from npti_export.serving.engine import Answer, Engine, FullError, Piece
from npti_export.serving.running_batch import Row
from npti_export.serving.sampling import Sampling

ROWS, MOST = 3, 6
SECONDS = 60


@dataclass
class Client:
    """Somebody who waits for an answer of a number of tokens."""

    answer: Answer
    pieces: Queue[Piece] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        self.answer.deliver = self.pieces.put

    def last(self) -> Piece:
        """The piece that ends the answer."""
        while not ((piece := self.pieces.get(timeout=SECONDS)).finish or piece.failed):
            pass
        return piece


def client(max_tokens: int, prompt: int = 4) -> Client:
    row = Row(list(range(6, 6 + prompt)), prompt)
    text, sampling = AnswerText(tiny_tokenizer()), Sampling(temperature=0.0)
    return Client(Answer(row, text, sampling, sampling.draws(0), max_tokens, frozenset(), None, lambda _piece: None))


@contextmanager
def running() -> Iterator[Engine]:
    model = tiny_chat_model()
    personality = load_personality(model, None, make_adapter(model), positions="all", slots=ROWS + 1)
    engine = Engine(model, tiny_tokenizer(), personality, ROWS, MOST)
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    engine.start(loop)
    try:
        yield engine
    finally:
        engine.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert not personality.loaded


def submitted(engine: Engine, *clients: Client) -> None:
    engine.submit([one.answer for one in clients])


def test_an_answer_that_is_done_is_told_so_though_its_row_cannot_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        leave = engine._batch.leave

        def without_memory(rows: Sequence[Row]) -> None:
            if rows:
                raise torch.OutOfMemoryError("the cache cannot be copied")
            leave(rows)

        short, long = client(3), client(20)
        with monkeypatch.context() as broken:
            broken.setattr(engine._batch, "leave", without_memory)
            submitted(engine, short, long)
            assert short.last().finish == "length"
            assert long.last().failed
            until(lambda: not engine.busy)
        after = client(3)
        submitted(engine, after)
        assert after.last().finish == "length"


def test_answers_that_nobody_waits_for_leave_and_others_move_up() -> None:
    with running() as engine:
        endless, waiting, last = [client(60) for _ in range(ROWS)], client(60), client(3)
        may_step, step = Event(), engine._batch.step

        def stepping() -> torch.Tensor:
            may_step.wait(SECONDS)
            return step()

        engine._batch.step = stepping  # type: ignore[method-assign]
        submitted(engine, *endless)
        submitted(engine, waiting)
        submitted(engine, last)
        assert engine.busy == ROWS + 2
        engine.cancel([one.answer for one in [*endless, waiting]])
        may_step.set()
        assert last.last().finish == "length"
        until(lambda: not engine.busy)
    assert all(one.answer.tokens <= 1 for one in endless)
    assert waiting.answer.tokens == 0


def test_a_request_gets_room_for_all_of_its_answers_or_none() -> None:
    with running() as engine:
        with pytest.raises(FullError):
            submitted(engine, *(client(2) for _ in range(MOST + 1)))
        assert engine.busy == 0
        taken = [client(2) for _ in range(MOST)]
        submitted(engine, *taken)
        assert [one.last().finish for one in taken] == ["length"] * MOST


def test_it_ends_after_the_answers_that_it_has() -> None:
    with running() as engine:
        taken = [client(20) for _ in range(MOST)]
        submitted(engine, *taken)
        engine.close()
        assert [one.answer.tokens for one in taken] == [20] * MOST
        assert not engine.alive
        with pytest.raises(FullError):
            submitted(engine, client(1))


def test_prompts_are_read_together_as_far_as_memory_is_meant_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)
    with running() as engine:
        read: list[list[int]] = []
        join = engine._batch.join

        def joining(rows: Sequence[Row]) -> None:
            read.append([row.prompt_length for row in rows])
            join(rows)

        engine._batch.join = joining  # type: ignore[method-assign]
        clients = [client(3, prompt) for prompt in (9, 9, 9, 50, 2)]
        submitted(engine, *clients)
        assert [one.last().finish for one in clients] == ["length"] * len(clients)
    assert read == [[9, 9], [9], [50], [2]]
