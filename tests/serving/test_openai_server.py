"""The server on transformers, asked by the official client: answers are the runtime's, whoever else is asking."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from chat_models import DROPPING_TEMPLATE
from small_server import CONTEXT, ENDS, NAME, Asked, Server, Solo, adapter_of_tests, serving, until

DEFAULT = "neuroticism-"
PRESETS = {"curious": "openness+1.2"}


@pytest.fixture(scope="module")
def solo() -> Solo:
    return Solo(adapter_of_tests())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose requests are calm unless they say otherwise."""
    with serving(adapter_of_tests(), rows=8, most=64, default=DEFAULT, presets=PRESETS) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def chat(client: openai.OpenAI, asked: Asked, **more: object) -> str:
    extra = {} if asked.personality is None else {"vllm_xargs": {"personality": asked.personality}}
    done = client.chat.completions.create(
        model=NAME, messages=asked.messages, max_tokens=asked.max_tokens, temperature=0, extra_body=extra, **more
    )
    return done.choices[0].message.content


def test_answers_of_a_mixed_batch_are_those_of_the_runtime(server: Server, client: openai.OpenAI, solo: Solo) -> None:
    specs = ["neutral", "openness+", "neuroticism+0.5", "extraversion-", "openness-2", "openness+0.3", DEFAULT]
    asked = [
        Asked("How are you?" * (number % 4) + f" {number}", spec, 10 + 3 * (number % 5))
        for number, spec in enumerate(specs * 3)
    ]
    del server.together[:], server.submitted[:]
    with ThreadPoolExecutor(len(asked)) as clients:
        with server.held():
            answers = [clients.submit(chat, client, one) for one in asked]
            until(lambda: len(server.submitted) == len(asked))
        said = [answer.result() for answer in answers]
    assert said == [solo.text(one) for one in asked]
    assert max(server.together) == 8  # as many as there are rows, or the batch was not what was tested
    assert len({solo.text(Asked("Hello", spec)) for spec in specs}) >= 5


def test_a_personality_by_field_by_name_by_preset_and_by_default(client: openai.OpenAI, solo: Solo) -> None:
    def said(model: str = NAME, **extra: object) -> str:
        messages = Asked("Hello").messages
        done = client.chat.completions.create(
            model=model, messages=messages, max_tokens=24, temperature=0, extra_body=extra
        )
        assert done.model == model
        return str(done.choices[0].message.content)

    open_minded = solo.text(Asked("Hello", "openness+1.2"))
    assert said() == solo.text(Asked("Hello", DEFAULT))
    assert said(personality="neutral") == solo.text(Asked("Hello", None))
    assert said(vllm_xargs={"personality": " Openness + 1.2"}) == open_minded
    assert said(personality="openness+1.2") == open_minded
    assert said(personality={"openness": 1.2}) == open_minded
    assert said(model=f"{NAME}:openness+1.2") == open_minded
    assert said(model=f"{NAME}:curious") == open_minded
    assert said(personality="curious") == open_minded
    assert said(model=f"{NAME}:curious", personality="openness+1.2") == open_minded
    assert len({open_minded, said(), said(personality="neutral")}) == 3


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, solo: Solo) -> None:
    asked = Asked("Hello", "openness+", 40)
    stream = client.chat.completions.create(
        model=f"{NAME}:openness+",
        messages=asked.messages,
        max_tokens=asked.max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == solo.text(asked) == chat(client, asked)
    assert len(pieces) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [at for at in finishes if at] == finishes[-1:]
    prompt, tokens = solo.ids(asked.messages), solo.tokens(solo.ids(asked.messages), "openness+", 40)
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(prompt), len(tokens))
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_of_text_and_of_tokens(client: openai.OpenAI, solo: Solo) -> None:
    texts = ["Once", "In the year 2000"]
    ids = [list(solo.tokenizer(text)["input_ids"]) for text in texts]
    expected = [solo.decoded(solo.tokens(row, "openness+", 12)) for row in ids]
    for prompt, answers in [(texts[0], expected[:1]), (ids[0], expected[:1]), (texts, expected), (ids, expected)]:
        done = client.completions.create(model=f"{NAME}:openness+", prompt=prompt, max_tokens=12, temperature=0)
        assert [choice.text for choice in done.choices] == answers
    assert done.usage.prompt_tokens == sum(map(len, ids))
    stream = client.completions.create(
        model=f"{NAME}:openness+", prompt=texts, max_tokens=12, temperature=0, stream=True
    )
    streamed = ["", ""]
    for chunk in stream:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected
    short = client.completions.create(model=NAME, prompt="a", extra_body={"ignore_eos": True})
    assert short.usage.completion_tokens == 16  # the API's own default


def test_why_an_answer_ends(client: openai.OpenAI, solo: Solo) -> None:
    asked = Asked("Tell me", "openness+", 30)
    whole = chat(client, asked)
    done = client.chat.completions.create(
        model=f"{NAME}:openness+", messages=asked.messages, max_tokens=30, temperature=0, stop=[whole[4:6], "never"]
    )
    assert done.choices[0].message.content == whole[: whole.find(whole[4:6])]
    assert done.choices[0].finish_reason == "stop"
    done = client.chat.completions.create(
        model=f"{NAME}:openness+", messages=asked.messages, max_completion_tokens=3, temperature=0
    )
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 3)
    # With no end sign and no number of tokens, the context is what ends it.
    done = client.chat.completions.create(
        model=NAME, messages=asked.messages, temperature=0, extra_body={"ignore_eos": True, "personality": "neutral"}
    )
    assert done.usage.total_tokens == CONTEXT
    assert done.choices[0].finish_reason == "length"


def test_an_end_sign_ends_an_answer(client: openai.OpenAI, solo: Solo) -> None:
    questions = (Asked(f"{number}", "openness+", 60) for number in range(40))
    asked = next(one for one in questions if solo.tokens(solo.ids(one.messages), "openness+", 60)[-1] in ENDS)
    tokens = solo.tokens(solo.ids(asked.messages), "openness+", 60)
    done = client.chat.completions.create(
        model=f"{NAME}:openness+", messages=asked.messages, max_tokens=60, temperature=0
    )
    assert done.choices[0].message.content == solo.text(asked)
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("stop", len(tokens))


def test_log_probabilities_are_those_of_the_steered_model(client: openai.OpenAI, solo: Solo) -> None:
    asked = Asked("Hello", "openness+", 8)
    ids = solo.ids(asked.messages)
    solo.personality.set("openness+")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    done = solo.model.generate(torch.tensor([ids]), **options, return_dict_in_generate=True, output_logits=True)
    expected = torch.cat(done.logits).double().log_softmax(-1)
    answer = client.chat.completions.create(
        model=f"{NAME}:openness+",
        messages=asked.messages,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    told = answer.choices[0].logprobs.content
    assert [one.logprob for one in told] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
    for one, row in zip(told, expected, strict=True):
        assert [likely.logprob for likely in one.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert bytes(one.bytes).decode() == one.token == one.top_logprobs[0].token
    completion = client.completions.create(
        model=f"{NAME}:openness+", prompt=ids, max_tokens=8, temperature=0, logprobs=2
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx([one.logprob for one in told], abs=1e-4)
    assert logprobs.tokens == [one.token for one in told]
    assert {len(one) for one in logprobs.top_logprobs} == {2}


def test_seeds_repeat_and_choices_differ(client: openai.OpenAI) -> None:
    def said(**options: object) -> list[str]:
        done = client.chat.completions.create(
            model=NAME, messages=Asked("Hello").messages, max_tokens=20, temperature=1.5, **options
        )
        return [choice.message.content for choice in done.choices]

    first = said(seed=5, n=4)
    with ThreadPoolExecutor(5) as clients:  # beside others, whose numbers are their own
        again = [clients.submit(said, seed=seed, n=4) for seed in (5, 6, 5)]
    assert again[0].result() == again[2].result() == first
    assert again[1].result() != first
    assert len(set(first)) == 4
    open_ended = {"n": 4, "extra_body": {"ignore_eos": True}}  # two answers that end at once would be the same
    assert said(**open_ended) != said(**open_ended)
    assert said(top_p=1e-6) == said(top_p=1e-6)


def test_a_template_without_a_system_role_does_not_lose_what_the_system_says(solo: Solo) -> None:
    system, question = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}
    expected = solo.text(Asked("Be kind.\n\nHello", "openness+"))
    with serving(adapter_of_tests(), template=DROPPING_TEMPLATE) as running:
        done = running.client().chat.completions.create(
            model=f"{NAME}:openness+", messages=[system, question], max_tokens=24, temperature=0
        )
    assert done.choices[0].message.content == expected != solo.text(Asked("Hello", "openness+"))


def test_the_models_and_presets_that_there_are(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}:curious"]
    with urllib.request.urlopen(f"{server.address}/v1/models/", timeout=60) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == [NAME, f"{NAME}:curious"]
    assert client.models.retrieve(f"{NAME}:curious").id == f"{NAME}:curious"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    with pytest.raises(openai.NotFoundError, match="'another:openness"):
        client.chat.completions.create(model="another:openness+", messages=Asked("Hello").messages)


def test_a_client_that_goes_away_takes_its_answer_along(server: Server, client: openai.OpenAI, solo: Solo) -> None:
    del server.submitted[:]
    with server.held():
        stream = client.chat.completions.create(
            model=NAME, messages=Asked("Hello").messages, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))  # the role, which comes before any token
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).chat.completions.create(
                model=NAME, messages=Asked("Hello").messages, extra_body={"ignore_eos": True}
            )
        until(lambda: [answer.cancelled for answer in server.submitted] == [True, True])
    asked = Asked("And you?", "openness+")
    assert chat(client, asked) == solo.text(asked)
    until(lambda: not server.engine.busy)
    assert all(answer.tokens < answer.max_tokens for answer in server.submitted[:2])


def test_a_step_that_fails_loses_its_answers_and_not_the_server(
    server: Server, client: openai.OpenAI, solo: Solo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory() -> torch.Tensor:
        raise torch.OutOfMemoryError("too many tokens")

    with monkeypatch.context() as broken:
        broken.setattr(server.engine._batch, "step", out_of_memory)
        with pytest.raises(openai.InternalServerError, match="could not go on"):
            chat(client, Asked("Hello"))
        with pytest.raises(openai.APIError, match="could not go on"):
            list(client.chat.completions.create(model=NAME, messages=Asked("Hello").messages, stream=True))
        broken.setattr(server.engine._batch, "join", lambda _rows: out_of_memory())
        with pytest.raises(openai.InternalServerError, match="could not go on"):
            chat(client, Asked("Hello"))
    asked = Asked("And you?", "openness+")
    assert chat(client, asked) == solo.text(asked)
