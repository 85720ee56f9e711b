"""A real server on localhost with a tiny chat model, and the same answers by the runtime itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import openai
import torch
import uvicorn
from adapters_for_tests import make_adapter
from chat_models import SYSTEM_TEMPLATE, tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.serving.engine import Answer, Engine
from npti_export.serving.openai_server import ServerOptions, listening, make_app

NAME = "tests/tiny-chat"
CONTEXT = 256
ENDS = [1, 20]
"""Tokens that end an answer; the tiny model writes the second one, a letter, now and then."""


def until(condition: Callable[[], bool]) -> None:
    """Waits for what other threads bring about."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def model_of_tests() -> LlamaForCausalLM:
    """A model of one's own; each is like the others."""
    model = tiny_chat_model(context=CONTEXT)
    model.generation_config.eos_token_id = ENDS
    return model


def adapter_of_tests() -> PersonalityAdapter:
    """Three traits, each steering other tokens."""
    model = model_of_tests()
    adapter = PersonalityAdapter(make_adapter(model).base_model, {})
    for seed, (trait, positions) in enumerate(
        [("openness", "generated"), ("neuroticism", "all"), ("extraversion", "last_prompt+generated")]
    ):
        adapter = adapter.with_trait(make_adapter(model, seed, (trait,), positions=positions).traits[trait])
    return adapter


@dataclass
class Server:
    """A server that runs.

    Args:
        address: Such as http://127.0.0.1:8000.
        engine: Its engine.
        submitted: The answers that it has taken so far.
        together: How many rows each of its steps had.
    """

    address: str
    engine: Engine
    submitted: list[Answer] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    _may_step: Event = field(default_factory=Event)

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=api_key, max_retries=0, timeout=120)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block no step is taken, so that nothing is done however long the clients take."""
        self._may_step.clear()
        try:
            yield
        finally:
            self._may_step.set()

    def _watch(self) -> None:
        submit, step = self.engine.submit, self.engine._batch.step
        self._may_step.set()

        def submitting(answers: list[Answer]) -> None:
            submit(answers)
            self.submitted += answers

        def stepping() -> torch.Tensor:
            self._may_step.wait()
            self.together.append(len(self.engine._batch.rows))
            return step()

        self.engine.submit = submitting  # type: ignore[method-assign]
        self.engine._batch.step = stepping  # type: ignore[method-assign]


@contextmanager
def serving(adapter: PersonalityAdapter, template: str = SYSTEM_TEMPLATE, **of_options: Any) -> Iterator[Server]:
    """Serves the tiny chat model within the block."""
    app = make_app(model_of_tests(), tiny_tokenizer(template), adapter, ServerOptions(NAME, **of_options))
    with listening("127.0.0.1", 0) as at:
        server = Server(f"http://127.0.0.1:{at.getsockname()[1]}", app.state.service.engine)
        server._watch()
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=60))
        thread = Thread(target=running.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield server
        finally:
            running.should_exit = True
            thread.join()
    assert not server.engine.alive


@dataclass(frozen=True)
class Asked:
    """A question and the personality that it is asked with."""

    question: str
    personality: str | None = None
    max_tokens: int = 24

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


class Solo:
    """The runtime's greedy answers, one prompt at a time, on a model of its own."""

    def __init__(self, adapter: PersonalityAdapter) -> None:
        self.tokenizer = tiny_tokenizer()
        self.model = model_of_tests()
        self.personality = load_personality(self.model, None, adapter)
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt of a chat."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens(self, ids: list[int], personality: str | None, max_tokens: int) -> list[int]:
        """What the model writes, its end included."""
        key = (*ids, personality, max_tokens)
        if key not in self._known:
            self.personality.set(personality)
            options = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": 0}
            self._known[key] = self.model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        return self._known[key]

    def text(self, asked: Asked) -> str:
        """The answer to a question."""
        return self.decoded(self.tokens(self.ids(asked.messages), asked.personality, asked.max_tokens))

    def decoded(self, tokens: list[int]) -> str:
        """Text without the end."""
        kept = tokens[:-1] if tokens[-1] in ENDS else tokens
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))
