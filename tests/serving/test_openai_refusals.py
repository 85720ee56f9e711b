"""What the server on transformers refuses: bad requests, wrong keys, too much at a time; others are answered."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from chat_models import tiny_chat_model, tiny_tokenizer
from small_server import NAME, Asked, Server, Solo, adapter_of_tests, serving

from npti_export.errors import NptiError
from npti_export.serving.http_guard import MAX_BODY
from npti_export.serving.openai_server import ServerOptions, listening, make_app

KEY = "sk-of-tests"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PLAIN = {
    CHAT: {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    COMPLETIONS: {"model": NAME, "prompt": "hi", "max_tokens": 4},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(adapter_of_tests(), rows=4, most=8, api_key=KEY) as running:
        yield running


def asked(server: Server, path: str, body: bytes, key: str | None = KEY, **headers: str) -> tuple[int, str]:
    """Status and message that a body is answered with."""
    sent = {"Content-Type": "application/json", **headers}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    try:
        with urllib.request.urlopen(urllib.request.Request(server.address + path, body, sent), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        told = json.loads(error.read())["error"]
        assert told.keys() == {"message", "type", "param", "code"}
        assert len(told["param"] or "") <= 2001
        return error.code, told["message"]


EITHER = [
    ({"personality": "anger+"}, 400, "there is no trait 'anger'"),
    ({"vllm_xargs": {"personality": "openness"}}, 400, "a term is a trait, + or -"),
    ({"vllm_xargs": {"personality": ""}}, 400, "a term is a trait"),
    ({"personality": 5}, 400, "not int"),
    ({"personality": ["openness+"]}, 400, "not list"),
    ({"personality": "openness+,openness-"}, 400, "twice"),
    ({"personality": "openness+" + "9" * 2000}, 400, "characters"),
    ({"personality": "openness+,neuroticism+"}, 400, "different positions"),
    ({"personality": "openness+1e40"}, 400, "a term is a trait"),
    ({"personality": "openness+" + "9" * 50}, 400, "lower the strength"),
    ({"model": f"{NAME}:joy+"}, 400, "there is no trait 'joy'"),
    ({"model": f"{NAME}:openness+", "personality": "openness-"}, 400, "different personalities"),
    ({"vllm_xargs": {"personalty": "openness+"}}, 400, "'personalty' is not known"),
    ({"personalty": "openness+"}, 400, "Unrecognized request argument supplied: personalty"),
    ({"model": "gpt-4o"}, 404, "'gpt-4o' is not served here"),
    ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
    ({"temperature": float("nan")}, 400, "temperature: Input should be"),
    ({"top_p": 2}, 400, "top_p"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"n": 9}, 400, "9 answers were asked for; this server takes 8 at a time"),
    ({"n": 10**6}, 400, "n: Input should be less than or equal to 128"),
    ({"stop": [""]}, 400, "stop"),
    ({"stop": ["a"] * 17}, 400, "stop"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not served"),
    ({"logit_bias": {"5": 100}}, 400, "logit_bias is not served"),
    ({"stream_options": {"include_everything": True}}, 400, "Unrecognized request argument"),
    ({"seed": "x"}, 400, "seed"),
]
OF_CHAT = [
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "tool", "content": "5"}]}, 400, "messages.0.role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages.0",
    ),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "fills the context of 256"),
    ({"tools": [{"type": "function"}]}, 400, "tools is not served"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is not served"),
    ({"top_logprobs": 21}, 400, "top_logprobs"),
]
OF_COMPLETIONS = [
    ({"prompt": ""}, 400, "A prompt is empty"),
    ({"prompt": []}, 400, "no prompt"),
    ({"prompt": [10**9]}, 400, "There is no token 1000000000"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "A prompt is empty"),
    ({"prompt": ["a", 5]}, 400, "prompt"),
    ({"prompt": ["a"] * 9}, 400, "9 answers were asked for"),
    ({"echo": True}, 400, "echo is not served"),
    ({"best_of": 3}, 400, "best_of is not served"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_told_why_and_others_are_answered(server: Server, stream: bool) -> None:
    solo = Solo(adapter_of_tests())
    client = server.client(KEY)
    questions = [Asked(f"Question {number}", "openness+", 12) for number in range(5)]
    expected = [solo.text(question) for question in questions]

    def answered(number: int) -> bool:
        done = client.chat.completions.create(
            model=f"{NAME}:openness+", messages=questions[number].messages, max_tokens=12, temperature=0
        )
        return done.choices[0].message.content == expected[number]

    cases = [(CHAT, *case) for case in EITHER + OF_CHAT] + [(COMPLETIONS, *case) for case in EITHER + OF_COMPLETIONS]
    with ThreadPoolExecutor(2) as clients:
        others = [clients.submit(answered, number % 5) for number in range(10)]
        for path, fields, status, said in cases:
            told, message = asked(server, path, json.dumps(PLAIN[path] | fields | {"stream": stream}).encode())
            assert (told, said in message) == (status, True), (path, fields, told, message)
            assert len(message) <= 2001
    assert all(other.result() for other in others)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b"{", "no JSON"),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b'{"model": ' + b"9" * 5000 + b"}", ""),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
        (b'{"personality": "\\ud800+", "messages": [{"role": "user", "content": "hi"}]}', "a term is a trait"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}', ""),
        (b'{"\\ud800": 1, "messages": [{"role": "user", "content": "hi"}]}', "unicode"),
        (b'{"' + b"x" * 5000 + b'": 1, "messages": [{"role": "user", "content": "hi"}]}', "Unrecognized"),
    ],
)
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes, said: str) -> None:
    status, message = asked(server, CHAT, body)
    assert (status, said in message) == (400, True), message


def test_a_page_of_somebody_else_cannot_ask(server: Server) -> None:
    """A browser sends such bodies to localhost without asking the server first; JSON it does not."""
    body = json.dumps(PLAIN[CHAT]).encode()
    assert asked(server, CHAT, body, **{"Content-Type": "text/plain"})[0] == 400


def test_fields_that_ask_for_nothing_are_ignored(server: Server) -> None:
    nothing = {"user": "x", "metadata": {"a": "b"}, "store": False, "logit_bias": None, "frequency_penalty": 0.0}
    nothing |= {"tools": [], "response_format": {"type": "text"}, "best_of": 1, "n": None, "seed": None, "stop": None}
    assert asked(server, CHAT, json.dumps(PLAIN[CHAT] | nothing).encode())[0] == 200
    parts = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    earlier = {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []}
    body = PLAIN[CHAT] | {"messages": [*parts, earlier, {"role": "user", "content": "Go on", "name": "Ann"}]}
    assert asked(server, CHAT, json.dumps(body).encode())[0] == 200


def test_nobody_asks_without_the_key(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(PLAIN[CHAT]).encode()
    for key in (None, "", "sk", KEY[:-1], KEY + "x", KEY.upper(), "\xfc"):
        assert asked(server, CHAT, body, key) == (401, "Incorrect API key provided.")
    assert asked(server, CHAT, body, None, Authorization=f"Basic {KEY}")[0] == 401
    assert asked(server, CHAT, b"{", None)[0] == 401  # before the body is looked at
    assert asked(server, CHAT, body)[0] == 200
    with pytest.raises(openai.AuthenticationError):
        server.client("another").models.list()
    assert urllib.request.urlopen(f"{server.address}/health", timeout=60).status == 200
    assert KEY not in caplog.text
    assert KEY not in repr(ServerOptions(NAME, api_key=KEY))
    for path in ("/docs", "/openapi.json", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.address + path, timeout=60)


def test_a_body_that_is_too_large_is_not_read(server: Server) -> None:
    host = server.address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", CHAT, b"{}", headers | {"Content-Length": str(MAX_BODY + 1)})
    assert connection.getresponse().status == 413
    connection.close()
    connection = http.client.HTTPConnection(host, timeout=60)
    pieces = (b" " * 65536 for _ in range(MAX_BODY // 65536 + 1))  # its length is not told before
    connection.request("POST", CHAT, pieces, headers | {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_more_than_the_server_takes_is_told_to_try_again(server: Server) -> None:
    long = PLAIN[CHAT] | {"max_tokens": 220, "ignore_eos": True, "n": 8, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.address + CHAT, json.dumps(long).encode(), headers)
    with server.held(), urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline().startswith(b"data: ")
        status, message = asked(server, CHAT, json.dumps(PLAIN[CHAT]).encode())
        assert (status, message) == (503, "8 answers are in the making; try again.")
    patient = server.client(KEY).with_options(max_retries=8)
    done = patient.chat.completions.create(model=NAME, messages=Asked("Hello").messages, max_tokens=3)
    assert done.choices[0].message.content is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"default": "anger+"}, "there is no trait 'anger'"),
        ({"presets": {"warm": "anger+"}}, "there is no trait 'anger'"),
    ],
)
def test_a_server_that_cannot_do_what_it_was_told_does_not_start(options: dict[str, object], said: str) -> None:
    model = tiny_chat_model()
    before = dict(model.named_modules())
    with pytest.raises(NptiError, match=said):
        make_app(model, tiny_tokenizer(), adapter_of_tests(), ServerOptions(NAME, **options))
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_an_address_that_is_taken_is_said() -> None:
    with listening("127.0.0.1", 0) as taken, pytest.raises(NptiError, match=r"cannot listen at 127\.0\.0\.1:\d+ \("):
        listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(NptiError, match=r"cannot listen at no\.\.host:8000 \("):
        listening("no..host", 8000)
