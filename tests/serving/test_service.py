"""From a request to the answers that are to be generated: prompts, limits, sampling and personality of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_tokenizer
from small_server import CONTEXT, ENDS, NAME, adapter_of_tests, model_of_tests

from npti_export.errors import NptiError
from npti_export.serving.engine import Answer
from npti_export.serving.openai_requests import ChatRequest, CompletionRequest
from npti_export.serving.openai_server import ServerOptions, make_app
from npti_export.serving.service import Service, without_system_role
from npti_export.steering.positions import Positions
from npti_export.traits import NEUTRAL, PersonalitySpec

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    app = make_app(model_of_tests(), tiny_tokenizer(), adapter_of_tests(), ServerOptions(NAME, rows=2, most=8))
    yield app.state.service
    app.state.service.close()


def answers(service: Service, request: ChatRequest | CompletionRequest) -> list[Answer]:
    return asyncio.run(service.answers(request, asyncio.Queue()))


def chat(**fields: object) -> ChatRequest:
    return ChatRequest(messages=HELLO, **fields)


def test_every_choice_of_every_prompt_is_an_answer_of_its_own(service: Service) -> None:
    made = answers(service, CompletionRequest(prompt=[[7, 8], [9]], n=2, seed=3, stop="x", personality="neuroticism-"))
    assert [answer.row.ids for answer in made] == [[7, 8], [7, 8], [9], [9]]
    assert len({id(answer.row.ids) for answer in made}) == 4
    assert len({answer.draws.random() for answer in made}) == 4
    assert {answer.max_tokens for answer in made} == {16}
    assert {answer.ends for answer in made} == {frozenset(ENDS)}
    assert {answer.row.positions for answer in made} == {Positions.ALL}
    assert {answer.row.spec for answer in made} == {PersonalitySpec.parse("neuroticism-")}


def test_the_context_and_the_models_own_choice_bound_an_answer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answer,) = answers(service, chat())
    assert answer.max_tokens + answer.row.prompt_length == CONTEXT
    (answer,) = answers(service, chat(max_tokens=10**6))
    assert answer.max_tokens + answer.row.prompt_length == CONTEXT
    monkeypatch.setattr(service._generation, "max_new_tokens", 5)
    assert answers(service, chat())[0].max_tokens == 5
    assert answers(service, chat(max_completion_tokens=7, max_tokens=9))[0].max_tokens == 7


def test_what_a_request_leaves_open_is_the_models_own_choice(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = answers(service, chat())
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.sampling.top_k) == (1.0, 1.0, 0)
    for name, value in {"temperature": 0.3, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}.items():
        monkeypatch.setattr(service._generation, name, value)
    (own,) = answers(service, chat())
    assert vars(own.sampling) == {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "seed": None,
    }
    (asked,) = answers(service, chat(temperature=0.0, top_k=-1))
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0.0, 0.8, 0)


def test_more_answers_than_there_may_be_are_refused_before_anything_is_encoded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million prompts fit into a body; encoding them would keep everybody waiting."""
    monkeypatch.setattr(service, "_encoded", lambda *_given, **_named: pytest.fail("a prompt was encoded"))
    with pytest.raises(NptiError, match="1000000 answers were asked for; this server takes 8"):
        answers(service, CompletionRequest(prompt=["a"] * 10**6))
    with pytest.raises(NptiError, match="9 answers were asked for"):
        answers(service, chat(n=9))


def test_a_term_of_strength_0_is_neutral_though_its_pole_cannot_be_served() -> None:
    """The engine would refuse the pole's dropout beside others', and with it the whole batch."""
    model = model_of_tests()
    adapter = make_adapter(model, 0, ("openness",), dropout=0.1)
    adapter = adapter.with_trait(make_adapter(model, 1, ("neuroticism",)).traits["neuroticism"])
    app = make_app(model, tiny_tokenizer(), adapter, ServerOptions(NAME, rows=2, most=8))
    try:
        with pytest.raises(NptiError, match="dropout"):
            answers(app.state.service, chat(personality="openness+"))
        (answer,) = answers(app.state.service, chat(personality="openness+0"))
    finally:
        app.state.service.close()
    assert answer.row.spec == NEUTRAL


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("u:a", "u:a"),
        ("s:a u:b", "u:a+b"),
        ("s:a s:b u:c a:d u:e", "u:a+b+c a:d u:e"),
        ("u:a a:b s:c u:d", "u:a a:b u:c+d"),
        ("u:a a:b s:c", "u:a a:b u:c"),
        ("s:a a:b u:c", "a:b u:a+c"),
    ],
)
def test_without_a_place_for_the_system_the_user_says_it(roles: str, expected: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}

    def read(text: str) -> list[dict[str, str]]:
        turns = [turn.split(":") for turn in text.split()]
        return [{"role": names[role], "content": said.replace("+", "\n\n")} for role, said in turns]

    assert without_system_role(read(roles)) == read(expected)
