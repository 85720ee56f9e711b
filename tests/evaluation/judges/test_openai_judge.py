"""The OpenAI judge against a real HTTP server on this machine that speaks chat completions."""

from __future__ import annotations

import json
import logging
import math
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
from npti_export.evaluation.judges.cost import Budget
from npti_export.evaluation.judges.judgement import Judgement
from npti_export.evaluation.judges.openai_judge import GIVE_UP, OpenAIJudge
from npti_export.traits import trait_named

KEY = "sk-test-5e72c1f0a9"
MODEL = "gpt-4o-2024-08-06"
PATH = "/v1/chat/completions"
TRAIT = trait_named("openness")
QUESTIONS = [f"Question {i}?" for i in range(6)]
ANSWERS = [f"Answer {i}." for i in range(6)]


def completion(
    content: str | None, refusal: str | None = None, finish_reason: str = "stop", logprobs: object = None
) -> Response:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
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


def judged_with_a_bad_reply(
    server: Judging, record: Path, reply: Callable[[dict[str, Any]], Response], failure: str
) -> tuple[OpenAIJudge, list[Judgement]]:
    """Of three answers the second gets that reply, which is its failure and no other's; from then on all is well."""
    server.reply = lambda body: reply(body) if number(body) == 1 else rated(2)
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record)
    judgements = judge.judge(QUESTIONS[:3], ANSWERS[:3])
    assert [j.score for j in judgements] == [2.0, None, 2.0]
    assert failure in (judgements[1].failure or "")
    server.asked.clear()
    server.reply = lambda body: rated(5)
    return judge, judgements


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
        (lambda body: completion("Very open indeed!"), "no score in the reply: 'Very open indeed!'"),
    ],
    ids=["refusal", "filter", "length", "off-scale", "prose"],
)
def test_a_reply_without_a_score_was_paid_for_and_is_not_asked_for_again(
    server: Judging, tmp_path: Path, reply: Callable[[dict[str, Any]], Response], failure: str
) -> None:
    record = tmp_path / "record.jsonl"
    judge, judgements = judged_with_a_bad_reply(server, record, reply, failure)
    assert len(record.read_text().splitlines()) == 3
    assert judge.judge(QUESTIONS[:3], ANSWERS[:3]) == judgements
    assert server.asked == []


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (lambda body: Response('{"choices": []}', content_type="application/json"), "holds no message"),
        (lambda body: Response('{"choices": [{}]}', content_type="application/json"), "holds no message"),
        (lambda body: Response('{"choices": [{"mess', content_type="application/json"), "is no JSON"),
        (lambda body: error(500, "oops", {"retry-after-ms": "1"}), "the server failed: oops (status 500)"),
        (lambda body: error(400, f"too long for {KEY}"), "turned the request down: too long for [key]"),
    ],
    ids=["no-choices", "no-message", "broken", "status-500", "status-400"],
)
def test_where_the_server_gave_no_reply_the_next_run_asks_again(
    server: Judging, tmp_path: Path, reply: Callable[[dict[str, Any]], Response], failure: str
) -> None:
    record = tmp_path / "record.jsonl"
    judge, _ = judged_with_a_bad_reply(server, record, reply, failure)
    assert len(record.read_text().splitlines()) == 2
    assert [j.score for j in judge.judge(QUESTIONS[:3], ANSWERS[:3])] == [2.0, 5.0, 2.0]
    assert server.numbers() == [1]


def test_the_client_waits_and_asks_again_when_there_are_too_many_requests(server: Judging) -> None:
    replies = iter([error(429, "slow down", {"retry-after-ms": "1"}), error(500, "oops", {"retry-after-ms": "1"})])
    server.reply = lambda body: next(replies, rated(3))
    [judgement] = OpenAIJudge(TRAIT, base_url=server.url).judge(QUESTIONS[:1], ANSWERS[:1])
    assert (judgement.score, judgement.failure, len(server.asked)) == (3.0, None, 3)


def test_a_limit_that_stays_is_an_error(server: Judging) -> None:
    server.reply = lambda body: error(429, "no quota left", {"retry-after-ms": "1"})
    with pytest.raises(
        NptiError, match=r"gave up: the server failed: no quota left \(status 429\); try again later\.$"
    ):
        OpenAIJudge(TRAIT, base_url=server.url).judge(QUESTIONS[:1], ANSWERS[:1])
    assert len(server.asked) == 6  # once, and five retries


def test_a_server_that_begins_to_fail_is_not_asked_on_and_on(server: Judging, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    replies = iter([rated(4), rated(4)])
    server.reply = lambda body: next(replies, error(503, "down", {"retry-after-ms": "1"}))
    questions, answers = [f"Q{at}?" for at in range(30)], [f"Answer {at % 10}." for at in range(30)]
    with pytest.raises(NptiError, match=r"gave up: the server failed: down .*is kept in .*record\.jsonl"):
        OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1).judge(questions, answers)
    assert len(record.read_text().splitlines()) == 2
    assert len(server.asked) <= 2 + 6 * (GIVE_UP + 2)


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "check OPENAI_API_KEY"), (403, "may do with"), (404, "knows no model")]
)
def test_a_server_that_turns_the_judge_away_ends_the_run(
    server: Judging, tmp_path: Path, status: int, expected: str
) -> None:
    record = tmp_path / "record.jsonl"
    server.slow = "</answer>"
    replies = iter([rated(4), rated(4)])
    server.reply = lambda body: next(replies, error(status, f"Incorrect API key: {KEY}"))
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1)
    with pytest.raises(NptiError, match=expected) as caught:
        judge.judge(QUESTIONS, ANSWERS)
    message = str(caught.value)
    assert f"status {status}" in message
    assert KEY not in message
    assert "\n" not in message
    assert len(record.read_text().splitlines()) == 2
    assert len(server.asked) < len(ANSWERS)  # the first refusal stops it


def test_a_run_that_was_ended_goes_on_where_it_was(server: Judging, tmp_path: Path) -> None:
    record = tmp_path / "deep" / "record.jsonl"

    told: list[int] = []

    def kill(done: int) -> None:
        told.append(done)
        if sum(told) == 3:
            raise KeyboardInterrupt

    server.slow = "</answer>"
    server.reply = lambda body: rated(number(body) % 5 + 1)
    with pytest.raises(KeyboardInterrupt):
        OpenAIJudge(TRAIT, base_url=server.url, record=record, concurrency=1).judge(QUESTIONS, ANSWERS, kill)
    kept = len(record.read_text().splitlines())
    assert 3 <= kept == len(server.asked) < 6
    numbers = server.numbers()

    server.asked.clear()
    server.slow = "none"
    progress: list[int] = []
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record)
    assert [j.score for j in judge.judge(QUESTIONS, ANSWERS, progress.append)] == [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]
    assert sorted(numbers + server.numbers()) == list(range(6))
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


def test_a_server_without_schemas_is_asked_without_one_from_then_on(server: Judging) -> None:
    def reply(body: dict[str, Any]) -> Response:
        if "response_format" in body:
            return error(400, "response_format is not supported")
        return completion('Here: {"reason": "Plain.", "score": 2}')

    server.reply = reply
    judge = OpenAIJudge(TRAIT, base_url=server.url, concurrency=1)
    assert [j.score for j in judge.judge(QUESTIONS, ANSWERS)] == [2.0] * 6
    assert ["response_format" in body for body in server.asked] == [True, True, *[False] * 6]


def test_a_server_without_probabilities_is_asked_without_them_from_then_on(server: Judging) -> None:
    server.reply = lambda body: error(400, "logprobs are not supported") if "logprobs" in body else rated(2)
    judge = OpenAIJudge(TRAIT, base_url=server.url, concurrency=1)
    assert [j.score for j in judge.judge(QUESTIONS, ANSWERS)] == [2.0] * 6
    assert ["logprobs" in body for body in server.asked] == [True, *[False] * 6]
    assert all("response_format" in body for body in server.asked)


def test_a_model_that_thinks_first_is_asked_in_its_own_way(server: Judging) -> None:
    def reply(body: dict[str, Any]) -> Response:
        return error(400, "use max_completion_tokens") if "max_tokens" in body or "temperature" in body else rated(3)

    server.reply = reply
    assert [j.score for j in OpenAIJudge(TRAIT, base_url=server.url).judge(QUESTIONS, ANSWERS)] == [3.0] * 6
    assert server.asked[-1]["max_completion_tokens"] == 4000


def test_where_the_server_gives_probabilities_the_score_is_the_expected_one(server: Judging) -> None:
    def reply(body: dict[str, Any]) -> Response:
        assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        tops = [{"token": str(rating), "logprob": math.log(p)} for rating, p in ((4, 0.6), (5, 0.3), (1, 0.1))]
        texts = ['{"reason":"So."', ',"score":', "4", "}"]
        tokens = [{"token": text, "logprob": 0.0, "top_logprobs": []} for text in texts]
        tokens[2] = {"token": "4", "logprob": math.log(0.6), "top_logprobs": tops}
        return completion("".join(texts), logprobs={"content": tokens, "refusal": None})

    server.reply = reply
    [judgement] = OpenAIJudge(TRAIT, base_url=server.url).judge(["Q?"], ["A."])
    assert judgement.score == pytest.approx(0.6 * 4 + 0.3 * 5 + 0.1 * 1)
    assert judgement.reason == "So."


def test_one_call_a_criterion(server: Judging, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    server.reply = lambda body: rated(5 if "its fluency" in body["messages"][0]["content"] else 2)
    trait, fluency = (
        OpenAIJudge(TRAIT, base_url=server.url, record=record, criterion=criterion)
        for criterion in ("trait", "fluency")
    )
    of_trait, of_fluency = trait.judge(QUESTIONS, ANSWERS), fluency.judge(QUESTIONS, ANSWERS)
    assert {(j.criterion, j.score) for j in of_trait} == {("trait", 2.0)}
    assert {(j.criterion, j.score) for j in of_fluency} == {("fluency", 5.0)}
    assert len(server.asked) == 12
    # The fluency of an answer is the same whichever trait the run is about.
    other = OpenAIJudge(trait_named("neuroticism"), base_url=server.url, record=record, criterion="fluency")
    assert {(j.trait, j.score) for j in other.judge(QUESTIONS, ANSWERS)} == {("neuroticism", 5.0)}
    assert len(server.asked) == 12


def test_answers_are_judged_in_an_order_drawn_by_the_seed(server: Judging) -> None:
    orders = []
    elsewhere = server.url.replace("/v1", "/other/v1")
    for seed, backwards, url in ((0, False, server.url), (0, True, elsewhere), (1, False, server.url)):
        server.asked.clear()
        pairs = list(zip(QUESTIONS, ANSWERS, strict=True))[:: -1 if backwards else 1]
        judge = OpenAIJudge(TRAIT, base_url=url, concurrency=1, seed=seed)
        judge.judge([question for question, _ in pairs], [answer for _, answer in pairs])
        orders.append([number(body) for body in server.asked])
    assert orders[0] == orders[1]  # whatever the order in which they were given, and whoever is asked
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_what_it_costs_is_told_first_and_too_much_is_not_asked(
    server: Judging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenAI's prices hold at OpenAI only; this server is taken for it.
    monkeypatch.setattr("npti_export.evaluation.judges.chat_requests._is_openai", lambda url: True)
    told: list[str] = []
    record = tmp_path / "record.jsonl"
    judge = OpenAIJudge(TRAIT, base_url=server.url, record=record, budget=Budget(1e-3, told.append))
    cost = judge.cost(QUESTIONS, ANSWERS)
    assert cost.calls == 6
    assert cost.dollars == pytest.approx((2.5 * cost.prompt_tokens + 10 * 6 * 80) / 1e6)
    sent = 6 * sum(
        len(m) for m in (judge._rubric, "<question>\nQuestion 1?\n</question>\n\n<answer>\nAnswer 1.\n</answer>")
    )
    assert cost.prompt_tokens == pytest.approx(sent / 4, rel=0.01)
    with pytest.raises(NptiError, match=r"about \$0\.01 is more than --max-cost 0\.001 allows"):
        judge.judge(QUESTIONS, ANSWERS)
    assert server.asked == []
    assert told == [f"openai:{MODEL} on openness: {cost}."]

    rich = OpenAIJudge(TRAIT, base_url=server.url, record=record, budget=Budget(1.0, told.append))
    rich.judge(QUESTIONS[:4], ANSWERS[:4])
    assert rich.cost(QUESTIONS, ANSWERS).calls == 2  # what is kept costs nothing
    judge.judge(QUESTIONS[:4], ANSWERS[:4])
    assert len(told) == 2


def test_nothing_of_what_is_asked_reaches_a_log(server: Judging, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("openai._base_client").debug("heard")
        url = server.url.replace("://", "://user:password@")
        OpenAIJudge(TRAIT, base_url=url).judge(QUESTIONS, ANSWERS)
    assert "heard" in caplog.text
    for secret in (KEY, "password", "Question", "Answer", "openness"):
        assert secret not in caplog.text


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
    with pytest.raises(
        NptiError, match=r"^The judge at 127\.0\.0\.1:9/v1 gave up: the server cannot be reached: .*refused"
    ) as caught:
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
