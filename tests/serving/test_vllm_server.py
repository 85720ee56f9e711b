"""The OpenAI-compatible server of vLLM with the plugin: personalities over HTTP, refusals, starts that are refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest
from engines import POSITIONS, Request, Served, assert_same, by_transformers, environment, made_to_serve

from npti_export.traits.trait import in_canonical_order

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not there; make test-vllm sets it up"),
]

NAME = "tiny"
PROMPT = (10, 11, 12, 13, 14, 15, 16)
TOKENS = 16
START_SECONDS = 900
ADMIN_KEY = "a-key-for-these-tests"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return made_to_serve(tmp_path_factory.mktemp("served"))


def command(served: Served, port: int) -> list[str]:
    options = {"--model": served.model_folder, "--host": "127.0.0.1", "--port": port, "--dtype": "float32"}
    options |= {"--served-model-name": NAME, "--max-model-len": 256, "--block-size": 32}
    flat = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flat, "--enforce-eager"]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def address(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose requests are calm unless they say otherwise, set up by ``--additional-config``."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    log, presets = folder / "log", folder / "presets.json"
    presets.write_text('{"curious": "openness+1.2"}', encoding="utf-8")
    config = {"adapter": str(served.adapter_folder), "personality": "neuroticism-", "presets": str(presets), "slots": 2}
    arguments = [*command(served, port), "--additional-config", json.dumps({"npti_export": config})]
    with log.open("w") as written:
        env = environment(served, NPTI_ADAPTER="", NPTI_ADMIN_KEY=ADMIN_KEY)
        server = subprocess.Popen(arguments, env=env, stdout=written, stderr=subprocess.STDOUT)
    try:
        address, began = f"http://127.0.0.1:{port}", time.monotonic()
        while True:
            assert server.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() - began < START_SECONDS, log.read_text()[-6000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        said = log.read_text()
        assert "npti-export is live: adapter" in said
        poles = [f"{trait}{sign}" for trait in in_canonical_order(POSITIONS) for sign in "+-"]
        assert f" with {', '.join(poles)}; requests that name none are neuroticism-." in said
        yield address
        assert server.poll() is None, log.read_text()[-6000:]
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def posting(url: str, body: dict[str, object]) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(url, json.dumps(body).encode(), headers)


def changed(url: str, method: str, body: dict[str, object] | None = None, key: str = ADMIN_KEY) -> tuple[int, str]:
    """Status and text with which the endpoint of personalities answers."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def refusal(url: str, body: dict[str, object]) -> tuple[int, str]:
    """Status and message with which a server refuses."""
    try:
        with urllib.request.urlopen(posting(url, body), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def completion(client: openai.OpenAI, model: str = NAME, **extra: object) -> dict[str, list]:
    done = client.completions.create(
        model=model,
        prompt=list(PROMPT),
        max_tokens=TOKENS,
        temperature=0,
        logprobs=1,
        extra_body={"ignore_eos": True, "return_token_ids": True, **extra},
    )
    choice = done.choices[0]
    return {"tokens": choice.token_ids, "logprobs": choice.logprobs.token_logprobs}  # type: ignore[attr-defined, union-attr]


def reference(served: Served, personality: str | None) -> tuple[list[int], list[float], list[float]]:
    return by_transformers(served, Request(PROMPT, personality, TOKENS))


def test_a_personality_by_request_by_name_and_by_default(client: openai.OpenAI, served: Served) -> None:
    assert_same(completion(client), reference(served, "neuroticism-"))
    assert_same(completion(client, vllm_xargs={"personality": "neutral"}), reference(served, None))
    for spec in ("openness+", "extraversion-0.5"):
        assert_same(completion(client, vllm_xargs={"personality": spec}), reference(served, spec))
        assert_same(completion(client, model=f"{NAME}:{spec}"), reference(served, spec))
    tokens = [completion(client, model=f"{NAME}:{spec}")["tokens"] for spec in ("neutral", "openness+", "openness-2")]
    assert tokens[0] != tokens[1] != tokens[2]


def test_presets_are_listed_as_models_and_answer(client: openai.OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}:curious"]
    assert_same(completion(client, model=f"{NAME}:curious"), reference(served, "openness+1.2"))


def test_names_are_added_while_the_server_runs(address: str, client: openai.OpenAI, served: Served) -> None:
    url = f"{address}/personalities"
    warm = {"name": "warm-agent", "personality": "agreeableness+,openness+0.5"}
    assert changed(url, "POST", warm, key="not-the-key")[0] == 401
    with pytest.raises(openai.BadRequestError, match="a term is a trait"):
        completion(client, model=f"{NAME}:warm-agent")
    assert changed(url, "POST", warm)[0] == 200
    assert changed(url, "POST", {"name": "other", "personality": "conscientiousness-"})[0] == 200
    expected = reference(served, "openness+0.5,agreeableness+")
    assert_same(completion(client, model=f"{NAME}:warm-agent"), expected)
    assert_same(completion(client, vllm_xargs={"personality": "warm-agent"}), expected)
    assert_same(completion(client, model=f"{NAME}:other"), reference(served, "conscientiousness-"))
    assert [model.id for model in client.models.list()][2:] == [f"{NAME}:warm-agent", f"{NAME}:other"]
    status, said = changed(url, "POST", {"name": "third", "personality": "openness-"})
    assert (status, "All 2 slots for added personalities are taken" in said) == (400, True)
    for name in ("warm-agent", "other"):
        assert changed(f"{url}/{name}", "DELETE")[0] == 200
    with pytest.raises(openai.BadRequestError, match="a term is a trait"):
        completion(client, model=f"{NAME}:other")
    assert len(list(client.models.list())) == 2


BAD = [
    ({"vllm_xargs": {"personality": "anger+"}}, "there is no trait 'anger'"),
    ({"vllm_xargs": {"personality": "openness"}}, "a term is a trait, + or -"),
    ({"vllm_xargs": {"personality": ""}}, "a term is a trait"),
    ({"vllm_xargs": {"personality": 5}}, "not int"),
    ({"vllm_xargs": {"personality": ["openness+"]}}, "not list"),
    ({"vllm_xargs": {"personality": "openness+,openness-"}}, "twice"),
    ({"vllm_xargs": {"personality": "openness+" + "9" * 2000}}, "characters"),
    ({"vllm_xargs": {"personality": "openness+,neuroticism+"}}, "different positions"),
    ({"model": f"{NAME}:joy+"}, "there is no trait 'joy'"),
    ({"model": f"{NAME}:openness+", "vllm_xargs": {"personality": "openness-"}}, "give one"),
    ({"use_beam_search": True, "n": 2}, "beam search"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_get_400_and_the_sentence_and_others_are_answered(
    address: str, client: openai.OpenAI, served: Served, stream: bool
) -> None:
    for body, said in BAD:
        plain = {"model": NAME, "prompt": list(PROMPT), "max_tokens": 4, "temperature": 0, "stream": stream}
        status, message = refusal(f"{address}/v1/completions", plain | body)
        assert (status, said in message) == (400, True), (body, message)
        chat = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": stream}
        status, message = refusal(f"{address}/v1/chat/completions", chat | body)
        assert (status, said in message) == (400, True), (body, message)
    assert_same(completion(client, vllm_xargs={"personality": "openness+"}), reference(served, "openness+"))


def test_an_unknown_model_is_not_taken_for_a_personality(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        completion(client, model="another:openness+")


def test_a_client_that_goes_away_disturbs_nobody(address: str, client: openai.OpenAI, served: Served) -> None:
    body = {"model": NAME, "prompt": list(PROMPT), "max_tokens": 200, "ignore_eos": True, "stream": True}
    body["vllm_xargs"] = {"personality": "extraversion+"}
    with urllib.request.urlopen(posting(f"{address}/v1/completions", body), timeout=60) as answer:
        assert json.loads(answer.readline().removeprefix(b"data: "))["choices"]
    assert_same(completion(client, vllm_xargs={"personality": "openness+"}), reference(served, "openness+"))


def test_an_adapter_of_another_model_keeps_the_server_from_starting(served: Served, tmp_path: Path) -> None:
    other = made_to_serve(tmp_path, layers=2)
    done = subprocess.run(
        command(served, free_port()),
        env=environment(served, NPTI_ADAPTER=str(other.adapter_folder)),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode != 0
    assert "The adapter was made for tiny-served (num_layers 2) and does not fit tiny-served (3)" in done.stderr


def test_a_default_that_is_not_there_keeps_the_server_from_starting(served: Served) -> None:
    done = subprocess.run(
        command(served, free_port()),
        env=environment(served, NPTI_PERSONALITY="anger+"),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode != 0
    assert "there is no trait 'anger'" in done.stderr
    assert "Traceback" not in done.stderr.split("npti-export: ")[-1]
