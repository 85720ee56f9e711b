"""Elicitation through a server of the same model, over HTTP: the same answers, lost servers, servers that know less."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from identify_process import TOKENIZER, chat_model, contents, personas, questions
from pytest_httpserver import HTTPServer
from small_chat_server import SmallChatServer, completion, failure
from transformers import LlamaForCausalLM
from werkzeug import Response

from npti_export.errors import NptiError
from npti_export.identification.answers import Decoding, Prompt, answer_of_text, generate_answers, prompt_ids
from npti_export.identification.elicit import elicit, plan, read_transcripts
from npti_export.identification.elicit_by_endpoint import elicit_by_endpoint
from npti_export.identification.endpoint import Endpoint, Reply, Request
from npti_export.identification.files import TraitFiles
from npti_export.identification.stages import run_elicit
from npti_export.pipeline import plan_traits, work_with

DECODING = Decoding(max_new_tokens=12, repetition_penalty=1.1, batch_size=1)
PLANNED = plan(questions("openness", 6)[:6], personas("openness"), seed=0)
KEY = "sk-test-0a5b1c"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return chat_model()


@pytest.fixture
def server(httpserver: HTTPServer, model: LlamaForCausalLM) -> SmallChatServer:
    """Serves the model itself: what it says, uncut and unstripped, as servers send it."""
    small = SmallChatServer(httpserver)
    one_at_a_time = threading.Lock()

    def reply(body: dict[str, Any]) -> Response:
        system, user = (message["content"] for message in body["messages"])
        decoding = Decoding(body["max_tokens"], body.get("repetition_penalty", 1.0), 1)
        with one_at_a_time:
            [answer] = generate_answers(model, TOKENIZER, [Prompt(user, system)], decoding)
        said = TOKENIZER.decode(answer.token_ids[: -1 if answer.finished else None])
        return completion(said, "stop" if answer.finished else "length")

    small.reply = reply
    return small


def ask(server: SmallChatServer, model: LlamaForCausalLM, keep_in: Path, progress: list[int] | None = None) -> Any:
    told = None if progress is None else progress.append
    return elicit_by_endpoint(Endpoint(server.url), model, TOKENIZER, PLANNED, keep_in, DECODING, told)


def test_a_server_of_the_model_gives_its_own_answers(
    server: SmallChatServer, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    progress: list[int] = []
    found = ask(server, model, tmp_path / "kept.jsonl", progress)
    here = elicit(model, TOKENIZER, PLANNED, decoding=DECODING)
    assert len({transcript.answer for transcript in here}) > 3
    for mine, theirs in zip(found, here, strict=True):
        # Punctuation ends an answer of this model; the sign itself comes back as the usual end sign.
        assert (mine.question, mine.persona, mine.pole) == (theirs.question, theirs.persona, theirs.pole)
        assert (mine.answer, mine.finished) == (theirs.answer.rstrip("".join(ENDS)), theirs.finished)
        assert mine.token_ids[:-1] == theirs.token_ids[:-1]  # all that is ever fed to a model
    assert sum(progress) == len(PLANNED)
    for body in server.asked:
        assert body["model"] == "tiny-chat"
        assert (body["temperature"], body["repetition_penalty"], body["repeat_penalty"]) == (0.0, 1.1, 1.1)
        assert body["max_tokens"] <= 12
        assert body["chat_template_kwargs"] == {"enable_thinking": False}  # as the prompt is rendered here
        assert [message["role"] for message in body["messages"]] == ["system", "user"]


ENDS = {TOKENIZER.decode([token]) for token in chat_model().generation_config.eos_token_id if token != 1}


@pytest.mark.parametrize("lost_after", [0, 5])
def test_a_lost_server_costs_nothing_and_the_same_command_goes_on(
    server: SmallChatServer, model: LlamaForCausalLM, tmp_path: Path, lost_after: int
) -> None:
    kept = tmp_path / "kept.jsonl"
    server.lost_after = lost_after
    with pytest.raises(NptiError, match=r"turned a request down .*shutting down.* goes on with the answers that are"):
        ask(server, model, kept)
    assert len(server.asked) == lost_after == len(read_transcripts(kept))

    server.lost_after = None
    progress: list[int] = []
    whole = ask(server, model, kept, progress)
    assert len(server.asked) == len(PLANNED)
    assert progress == [lost_after, *[1] * (len(PLANNED) - lost_after)]
    assert whole == ask(server, model, tmp_path / "unbroken.jsonl")
    assert ask(server, model, kept) == whole
    assert len(server.asked) == 2 * len(PLANNED)  # the unbroken run's; the last call asked nothing


def test_elicit_by_a_server_that_is_lost_ends_in_the_same_bytes(
    server: SmallChatServer, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    material = plan_traits(["openness"], questions, personas)["openness"]
    work = work_with(model, TOKENIZER, batch_size=8, endpoint=Endpoint(server.url))
    run_elicit(work, TraitFiles(tmp_path / "whole", "openness"), material)
    server.lost_after = len(server.asked) + 5
    with pytest.raises(NptiError, match="shutting down"):
        run_elicit(work, TraitFiles(tmp_path / "broken", "openness"), material)
    server.lost_after = None
    run_elicit(work, TraitFiles(tmp_path / "broken", "openness"), material)
    assert len(server.asked) == 2 * 12
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")

    here = work_with(model, TOKENIZER, batch_size=8)
    run_elicit(here, TraitFiles(tmp_path / "here", "openness"), material)
    source = "transcripts/openness.json"
    assert contents(tmp_path / "here")[source] != contents(tmp_path / "whole")[source]  # who answered belongs to it


def test_a_server_that_does_not_know_the_penalty_is_asked_without_one(
    server: SmallChatServer, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    answer = server.reply
    server.reply = lambda body: failure(400, "unknown field") if "repetition_penalty" in body else answer(body)
    endpoint = Endpoint(server.url, concurrency=1)
    elicit_by_endpoint(endpoint, model, TOKENIZER, PLANNED, tmp_path / "k.jsonl", DECODING)
    assert ["repetition_penalty" in body for body in server.asked] == [True, *[False] * len(PLANNED)]


@pytest.mark.parametrize("models", [(), ("a", "b")])
def test_the_model_must_be_named_where_there_is_not_one(httpserver: HTTPServer, models: tuple[str, ...]) -> None:
    server = SmallChatServer(httpserver, models)
    with pytest.raises(NptiError, match=rf"lists {len(models)} models \({', '.join(models) or 'none'}\)"):
        Endpoint(server.url)
    replies: dict[int, Reply] = {}
    Endpoint(server.url, "b").ask_all([Request(({"role": "user", "content": "Q?"},), 5)], replies.__setitem__)
    assert replies == {0: Reply("Yes.", True)}
    assert server.asked[0]["model"] == "b"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (failure(401, f"Incorrect key {KEY}"), "does not accept the key (status 401)"),
        (failure(403, "no"), "does not let this key in (status 403)"),
        (failure(404, f"no model for {KEY}"), "turned a request down (no model for [key]) (status 404)"),
        (Response("<html></html>", content_type="text/html"), "does not speak OpenAI's chat completions"),
        (Response('{"choices": []}', content_type="application/json"), "does not speak OpenAI's chat completions"),
    ],
)
def test_what_cannot_be_used_is_said_without_the_key(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, reply: Response, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = SmallChatServer(httpserver)
    server.reply = lambda body: reply
    with pytest.raises(NptiError) as caught:
        Endpoint(server.url).ask_all([Request(({"role": "user", "content": "Q?"},), 5)], lambda at, reply: None)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.authorization == {f"Bearer {KEY}"}


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with pytest.raises(NptiError, match=r"^The server at 127\.0\.0\.1:9/v1 cannot be reached"):
        Endpoint("http://me:secret@127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/v1",
        "http:///v1",
        "http://a:80x0/v1",
        "http://a:99999/v1",
        "http://[::1/v1",
        "http://a\x00/",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(NptiError, match=r"^The endpoint's address is not one; it should be like http://localhost:8000"):
        Endpoint(url)


def test_half_of_a_character_is_replaced(httpserver: HTTPServer) -> None:
    """JSON can spell one, and a server that cuts its answers anywhere sends one; no tokenizer and no file takes it."""
    server = SmallChatServer(httpserver)
    server.reply = lambda body: completion("Tea \ud83c")
    replies: dict[int, Reply] = {}
    Endpoint(server.url).ask_all([Request(({"role": "user", "content": "Q?"},), 5)], replies.__setitem__)
    assert replies == {0: Reply("Tea ?", True)}


def test_words_of_a_server_become_tokens(model: LlamaForCausalLM) -> None:
    prompt = prompt_ids(Prompt("Q?"), TOKENIZER)
    room = model.config.max_position_embeddings - len(prompt)
    ids = TOKENIZER("ab", add_special_tokens=False)["input_ids"]
    whole = answer_of_text("ab", True, prompt, model, TOKENIZER)
    assert (whole.text, whole.token_ids, whole.finished) == ("ab", (*ids, 1), True)
    broken = answer_of_text("ab", False, prompt, model, TOKENIZER)
    assert (broken.token_ids, broken.finished) == (tuple(ids), False)
    # What a server says is not trusted: a written end sign ends the answer, and no answer is longer than the context.
    written = answer_of_text("ab<|end|>cd", True, prompt, model, TOKENIZER)
    assert (written.text, written.token_ids) == ("ab", (*ids, 1))
    long = answer_of_text("a" * 10 * room, True, prompt, model, TOKENIZER)
    assert (len(long.token_ids), long.finished) == (room, False)
    empty = answer_of_text("", True, prompt, model, TOKENIZER)
    assert (empty.text, empty.token_ids) == ("", (1,))
