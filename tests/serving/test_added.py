"""Names that are added while a server runs: what they stand for, how many there may be, and who may add them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from threading import Thread
from time import monotonic, sleep

import pytest
import uvicorn
from fastapi import FastAPI

from npti_export.errors import NptiError
from npti_export.serving.added import AddedPersonalities
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.personalities_endpoint import MAX_BODY, personalities_router

KEY = "0123456789abcdef"


@pytest.fixture
def served(tiny_llama, tiny_adapter) -> ServedPersonalities:
    return ServedPersonalities(tiny_adapter(tiny_llama), presets={"calm": "neuroticism-"})


def test_a_name_is_found_at_once_and_gone_when_removed(served: ServedPersonalities) -> None:
    added = AddedPersonalities(served, slots=2)
    with pytest.raises(NptiError):
        served.check("curious")
    added.add("curious", "openness+1.2")
    assert served.steering({"personality": "curious"}, 3) == served.steering({"personality": "openness+1.2"}, 3)
    assert (added.listing(), added.free) == ({"calm": "neuroticism-", "curious": "openness+1.2"}, 1)
    added.remove("curious")
    with pytest.raises(NptiError):
        served.check("curious")
    assert added.free == 2


def test_beyond_the_slots_it_is_refused_until_one_is_removed(served: ServedPersonalities) -> None:
    added = AddedPersonalities(served, slots=2)
    added.add("one", "openness+")
    added.add("two", "openness-")
    with pytest.raises(NptiError, match=r"All 2 slots for added personalities are taken, so 'three' was not added"):
        added.add("three", "neuroticism+")
    assert "three" not in served.presets
    added.remove("one")
    added.add("three", "neuroticism+")
    assert sorted(served.presets) == ["calm", "three", "two"]


@pytest.mark.parametrize(
    ("name", "personality", "said"),
    [
        ("calm", "openness+", "The name 'calm' is in use, for neuroticism-"),
        ("openness+", "openness+", "cannot name a personality"),
        ("neutral", "openness+", "cannot name a personality"),
        ("openness-1", "openness+", "because it reads as one"),
        ("a" * 65, "openness+", "cannot name a personality"),
        ("cross", "anger+", "there is no trait 'anger'"),
    ],
)
def test_what_cannot_be_added_is_refused(served: ServedPersonalities, name: str, personality: str, said: str) -> None:
    added = AddedPersonalities(served, slots=1)
    with pytest.raises(NptiError) as refused:
        added.add(name, personality)
    assert said in str(refused.value)
    assert (added.free, list(served.presets)) == (1, ["calm"])


def test_names_of_the_start_are_not_removed(served: ServedPersonalities) -> None:
    with pytest.raises(NptiError, match=r"No personality 'calm' was added while the server ran \(added are: none\)"):
        AddedPersonalities(served, slots=1).remove("calm")


@pytest.fixture
def address(served: ServedPersonalities) -> Iterator[str]:
    app = FastAPI()
    app.include_router(personalities_router(AddedPersonalities(served, slots=1), KEY))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    began = monotonic()
    while not server.started:
        assert monotonic() - began < 60
        sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/personalities"
    server.should_exit = True
    thread.join(30)


def asked(url: str, method: str, body: bytes | None = None, key: str | None = KEY) -> tuple[int, dict]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_over_http_names_come_and_go(address: str, served: ServedPersonalities) -> None:
    body = b'{"name": "curious", "personality": "openness+1.2"}'
    state = {"personalities": {"calm": "neuroticism-", "curious": "openness+1.2"}, "slots": 1, "free": 0}
    assert asked(address, "POST", body) == (200, state)
    assert asked(address, "GET") == (200, state)
    status, said = asked(address, "POST", b'{"name": "second", "personality": "openness-"}')
    assert (status, said["detail"][:12]) == (400, "All 1 slots ")
    assert asked(f"{address}/calm", "DELETE")[0] == 404
    assert asked(f"{address}/curious", "DELETE")[1]["free"] == 1
    assert list(served.presets) == ["calm"]


@pytest.mark.parametrize("key", [None, "", "0123456789abcde", "0123456789abcdefg", "é" * 16])
def test_without_the_key_nothing_is_told_or_changed(address: str, served: ServedPersonalities, key: str | None) -> None:
    for method, url in (("GET", address), ("POST", address), ("DELETE", f"{address}/calm")):
        status, said = asked(url, method, b'{"name": "x", "personality": "openness+"}', key)
        assert (status, "calm" in str(said)) == (401, False)
    assert list(served.presets) == ["calm"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 5000, 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"name": "x"}', 400),
        (b'{"name": 1, "personality": "openness+"}', 400),
        (b'{"name": "x", "personality": "openness+", "more": 1}', 400),
        (b'{"name": "x", "personality": "anger+"}', 400),
        (b" " * (MAX_BODY + 1), 413),
    ],
)
def test_bad_requests_change_nothing(address: str, served: ServedPersonalities, body: bytes, status: int) -> None:
    assert asked(address, "POST", body)[0] == status
    assert list(served.presets) == ["calm"]
