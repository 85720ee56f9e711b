"""The OpenAI judge against a real HTTP server on this machine that speaks chat completions."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from npti_export.errors import NptiError
from npti_export.evaluation.openai_judge import OpenAIJudge
from npti_export.traits import trait_named

KEY = "sk-test-5e72c1f0a9"
MODEL = "gpt-4o-2024-08-06"
PATH = "/v1/chat/completions"
TRAIT = trait_named("openness")
QUESTIONS = [f"Question {i}?" for i in range(6)]
ANSWERS = [f"Answer {i}." for i in range(6)]


def completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop") -> Response:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    return Response(json.dumps(body), content_type="application/json")


def rated(score: Any, reason: str = "Because.") -> Response:
    return completion(json.dumps({"reason": reason, "score": score}))


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}})
    return Response(body, status=status, content_type="application/json", headers=headers)


class Judging:
    """The server: keeps what it was asked and answers by `reply(body)`."""

    def __init__(self, server: HTTPServer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.authorization: set[str | None] = set()
        self.reply: Callable[[dict[str, Any]], Response] = lambda body: rated(4)
        self.slow = "none"  # how a request ends that is answered late, so that a run can be ended before it
        self.url = server.url_for("/v1")
        self._lock = threading.Lock()
        server.expect_request(re.compile(rf"(/other)?{PATH}"), method="POST").respond_with_handler(self._handle)

    def _handle(self, request: Request) -> Response:
        body = request.get_json()
        with self._lock:
            self.asked.append(body)
            self.authorization.add(request.headers.get("Authorization"))
        if body["messages"][1]["content"].endswith(self.slow):
            time.sleep(0.3)
        return self.reply(body)

    def numbers(self) -> list[int]:
        """Which of ANSWERS were asked about, in order."""
        return sorted(number(body) for body in self.asked)


def number(body: dict[str, Any]) -> int:
    match = re.search(r"<answer>\nAnswer (\d)\.\n</answer>", body["messages"][1]["content"])
    assert match is not None
    return int(match[1])


@pytest.fixture
def server(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judging]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    yield Judging(httpserver)
    httpserver.check_assertions()


def test_ratings_come_back_in_the_order_given(server: Judging) -> None:
    server.reply = lambda body: rated(number(body) % 5 + 1, f"Reason {number(body)}.")
    progress: list[int] = []
    judge = OpenAIJudge(TRAIT, base_url=server.url)
    judgements = judge.judge(QUESTIONS, ANSWERS, progress.append)
    assert [j.score for j in judgements] == [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]
    assert [j.reason for j in judgements] == [f"Reason {i}." for i in range(6)]
    assert [(j.question, j.answer) for j in judgements] == list(zip(QUESTIONS, ANSWERS, strict=True))
    assert {(j.trait, j.judge, j.failure) for j in judgements} == {("openness", f"openai:{MODEL}", None)}
    assert (judge.name, judge.lowest, judge.highest) == (f"openai:{MODEL}", 1.0, 5.0)
    assert progress == [1] * 6


def test_what_the_server_is_sent(server: Judging) -> None:
    OpenAIJudge(TRAIT, base_url=server.url).judge(["What is art?"], ["Art is\nall."])
    [body] = server.asked
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert len(TRAIT.facets) == 6
    for facet in TRAIT.facets:
        assert f"high: {facet.high}; low: {facet.low}" in system["content"]
    assert user["content"] == "<question>\nWhat is art?\n</question>\n\n<answer>\nArt is\nall.\n</answer>"
    assert (body["model"], body["temperature"], body["seed"]) == (MODEL, 0, 0)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert list(schema["schema"]["properties"]) == schema["schema"]["required"] == ["reason", "score"]
    assert schema["schema"]["properties"]["score"]["enum"] == [1, 2, 3, 4, 5]
    assert server.authorization == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (lambda body: completion(None, refusal="I'm sorry, no."), "the judge refused: I'm sorry, no."),
        (lambda body: completion("", finish_reason="content_filter"), "the judge refused: content filter"),
        (lambda body: completion('{"reason": "x", "score": 4}', finish_reason="length"), "the reply was cut off"),
        (lambda body: rated(7), "off the scale of 1 to 5"),
        (lambda body: completion("Very open indeed!"), "no score in the reply 'Very open indeed!'"),
        (lambda body: Response('{"choices": []}', content_type="application/json"), "holds no message"),
        (lambda body: Response('{"choices": [{}]}', content_type="application/json"), "holds no message"),
        (lambda body: error(400, f"too long for {KEY}"), "turned the request down: too long for [key]"),
    ],
    ids=["refusal", "filter", "length", "off-scale", "prose", "no-choices", "no-message", "status-400"],
)
def test_a_failure_is_no_score_and_is_asked_again(
    server: Judging, tmp_path: Path, reply: Callable[[dict[str, Any]], Response], failure: str
) -> None:
    record = tmp_path / "record.jsonl"
    server.reply = lambda body: reply(body) if number(body) == 1 else rated(2)
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record)
    judgements = judge.judge(QUESTIONS[:3], ANSWERS[:3])
    assert [j.score for j in judgements] == [2.0, None, 2.0]
    assert judgements[1].failure is not None
    assert failure in judgements[1].failure
    assert len(record.read_text().splitlines()) == 2

    server.asked.clear()
    server.reply = lambda body: rated(5)
    assert [j.score for j in judge.judge(QUESTIONS[:3], ANSWERS[:3])] == [2.0, 5.0, 2.0]
    assert server.numbers() == [1]


def test_the_client_waits_and_asks_again_when_there_are_too_many_requests(server: Judging) -> None:
    replies = iter([error(429, "slow down", {"retry-after-ms": "1"}), error(500, "oops", {"retry-after-ms": "1"})])
    server.reply = lambda body: next(replies, rated(3))
    [judgement] = OpenAIJudge(TRAIT, base_url=server.url).judge(QUESTIONS[:1], ANSWERS[:1])
    assert (judgement.score, judgement.failure, len(server.asked)) == (3.0, None, 3)


def test_a_limit_that_stays_is_an_error(server: Judging) -> None:
    server.reply = lambda body: error(429, "no quota left", {"retry-after-ms": "1"})
    with pytest.raises(NptiError, match=r"no quota left\) \(status 429\); try again later\.$"):
        OpenAIJudge(TRAIT, base_url=server.url).judge(QUESTIONS[:1], ANSWERS[:1])
    assert len(server.asked) == 6  # once, and five retries


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "check OPENAI_API_KEY"), (403, "may do with"), (404, "knows no model")]
)
def test_a_server_that_turns_the_judge_away_ends_the_run(
    server: Judging, tmp_path: Path, status: int, expected: str
) -> None:
    record = tmp_path / "record.jsonl"
    server.slow = "Answer 4.\n</answer>"
    server.reply = lambda body: rated(4) if number(body) < 2 else error(status, f"Incorrect API key: {KEY}")
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1)
    with pytest.raises(NptiError, match=expected) as caught:
        judge.judge(QUESTIONS, ANSWERS)
    message = str(caught.value)
    assert f"status {status}" in message
    assert str(record) in message
    assert KEY not in message
    assert "\n" not in message
    assert len(record.read_text().splitlines()) == 2
    assert 2 in server.numbers()
    assert len(server.asked) < len(ANSWERS)  # the first refusal stops it


def test_a_run_that_was_ended_goes_on_where_it_was(server: Judging, tmp_path: Path) -> None:
    record = tmp_path / "deep" / "record.jsonl"

    told: list[int] = []

    def kill(done: int) -> None:
        told.append(done)
        if sum(told) == 3:
            raise KeyboardInterrupt

    server.slow = "Answer 4.\n</answer>"
    server.reply = lambda body: rated(number(body) % 5 + 1)
    with pytest.raises(KeyboardInterrupt):
        OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1).judge(QUESTIONS, ANSWERS, kill)
    kept = len(record.read_text().splitlines())
    assert 3 <= kept == len(server.asked) < 6

    server.asked.clear()
    progress: list[int] = []
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record)
    assert [j.score for j in judge.judge(QUESTIONS, ANSWERS, progress.append)] == [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]
    assert server.numbers() == list(range(kept, 6))
    assert progress == [kept, *[1] * (6 - kept)]

    server.asked.clear()
    judge.judge(QUESTIONS, ANSWERS)
    assert server.asked == []
    OpenAIJudge(trait_named("neuroticism"), base_url=server.url, record=record).judge(QUESTIONS, ANSWERS)
    OpenAIJudge(TRAIT, model="gpt-4o-mini", base_url=server.url, record=record).judge(QUESTIONS, ANSWERS)
    elsewhere = server.url.replace("/v1", "/other/v1")
    OpenAIJudge(TRAIT, base_url=elsewhere, record=record).judge(QUESTIONS, ANSWERS)
    assert len(server.asked) == 18  # another rubric, another model, another server are other judgements
    assert KEY not in record.read_text()


@pytest.mark.parametrize("left", [1, 40, -1], ids=["a brace", "a part", "all but the line feed"])
def test_a_last_line_that_a_kill_cut_is_asked_again(server: Judging, tmp_path: Path, left: int) -> None:
    record = tmp_path / "record.jsonl"
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1)
    judge.judge(QUESTIONS[:3], ANSWERS[:3])
    whole = record.read_bytes()
    *first, last = whole.splitlines(keepends=True)
    record.write_bytes(b"".join(first) + last[:left])

    server.asked.clear()
    assert [j.score for j in judge.judge(QUESTIONS[:3], ANSWERS[:3])] == [4.0, 4.0, 4.0]
    assert server.numbers() == [2]
    assert record.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], b'{"key": 1\n', lines[1]],
        lambda lines: [lines[0].replace(b"4.0", b"9.0"), lines[1]],
        lambda lines: [*lines, b"my notes"],
    ],
    ids=["broken in the middle", "off the scale", "another file"],
)
def test_a_record_that_is_none_is_refused_and_left_alone(
    server: Judging, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    record = tmp_path / "record.jsonl"
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record)
    judge.judge(QUESTIONS[:2], ANSWERS[:2])
    damaged = b"".join(damage(record.read_bytes().splitlines(keepends=True)))
    record.write_bytes(damaged)
    with pytest.raises(NptiError, match=r"Line \d of .*record\.jsonl is no judgement"):
        judge.judge(QUESTIONS[:2], ANSWERS[:2])
    assert record.read_bytes() == damaged


def test_a_server_without_schemas_is_asked_without_one_from_then_on(server: Judging) -> None:
    def reply(body: dict[str, Any]) -> Response:
        if "response_format" in body:
            return error(400, "response_format is not supported")
        return completion('Here: {"reason": "Plain.", "score": 2}')

    server.reply = reply
    judge = OpenAIJudge(TRAIT, base_url=server.url, concurrency=1)
    assert [j.score for j in judge.judge(QUESTIONS, ANSWERS)] == [2.0] * 6
    assert ["response_format" in body for body in server.asked] == [True, *[False] * 6]


def test_equal_answers_are_asked_about_once(server: Judging) -> None:
    progress: list[int] = []
    judge = OpenAIJudge(TRAIT, base_url=server.url, concurrency=1)
    judgements = judge.judge(["Q?", "R?", "Q?"], ["A.", "A.", "A."], progress.append)
    assert len(server.asked) == 2
    assert [j.question for j in judgements] == ["Q?", "R?", "Q?"]
    assert sorted(progress) == [1, 2]


def test_no_key_is_needed_for_another_server_only(server: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    for url in (None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
        with pytest.raises(NptiError, match="set OPENAI_API_KEY, or OPENAI_BASE_URL"):
            OpenAIJudge(TRAIT, base_url=url)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    [judgement] = OpenAIJudge(TRAIT).judge(["Q?"], ["A."])
    assert judgement.score == 4.0
    assert server.authorization == {"Bearer none"}


def test_a_server_that_is_not_there(server: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    judge = OpenAIJudge(TRAIT, base_url="http://user:secret@127.0.0.1:9/v1")
    with pytest.raises(NptiError, match=r"^The judge at 127\.0\.0\.1:9/v1 cannot be reached \(.*refused.*\)") as caught:
        judge.judge(["Q?"], ["A."])
    assert "secret" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_web_page_is_no_judge(server: Judging) -> None:
    server.reply = lambda body: Response("<html>Hello</html>", content_type="text/html")
    with pytest.raises(NptiError, match="does not speak OpenAI's chat completions"):
        OpenAIJudge(TRAIT, base_url=server.url).judge(["Q?"], ["A."])


def test_arguments_that_cannot_be_used(server: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NptiError, match="2 questions but 1 answers"):
        OpenAIJudge(TRAIT, base_url=server.url).judge(["Q?", "R?"], ["A."])
    with pytest.raises(NptiError, match="concurrency is 0"):
        OpenAIJudge(TRAIT, base_url=server.url, concurrency=0)
    with pytest.raises(NptiError, match="base URL is not one"):
        OpenAIJudge(TRAIT, base_url="localhost:8000")
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nx")
    with pytest.raises(NptiError, match="characters that no key has") as caught:
        OpenAIJudge(TRAIT, base_url=server.url)
    assert KEY not in str(caught.value)
    assert server.asked == []
