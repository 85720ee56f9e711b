"""Personalities in real vLLM engines: each answer against the transformers runtime's for the same personality."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engines import (
    ANSWER_SECONDS,
    POSITIONS,
    VOCABULARY,
    Engine,
    Request,
    Served,
    assert_same,
    by_transformers,
    made_to_serve,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not there; make test-vllm sets it up"),
]

SPECS = (
    None,
    "neutral",
    "openness+",
    "openness-0.5",
    "neuroticism+0.7",
    "neuroticism-",
    "extraversion+",
    "extraversion-1.5",
    "conscientiousness+",
    "conscientiousness-0.5",
    "agreeableness+",
    "agreeableness-1.3,openness+0.5",
)
BLOCK = 32
EAGER = {"enforce_eager": True, "block_size": BLOCK, "enable_prefix_caching": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return made_to_serve(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module", params=["eager", "compiled"])
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    return EAGER | {"enforce_eager": request.param == "eager"}


@pytest.fixture(scope="module")
def without(served: Served, options: dict[str, object]) -> list[dict[str, Any]]:
    """What plain vLLM answers to the unsteered of the mixed requests."""
    with Engine(served, plugin=False, **options) as plain:
        assert "npti-export" not in plain.log
        return plain.answers([request for request in mixed(64) if is_neutral(request)])[0]


@pytest.fixture(scope="module")
def engine(served: Served, options: dict[str, object], without: list[dict[str, Any]]) -> Iterator[Engine]:
    """With the plugin. Plain first, so that a graph that was kept without tables would be found by this one."""
    with Engine(served, **options) as steered:
        yield steered


def prompt(length: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(6, VOCABULARY) for _ in range(length))


def mixed(count: int) -> list[Request]:
    """Requests of many lengths; half of them share their first 64 tokens with others of other personalities."""
    shared = prompt(64, seed=1000)
    requests = []
    for n in range(count):
        draw = random.Random(n)
        own = prompt(draw.randint(2, 90), seed=n)
        # Every steered request has a strength of its own, so that none can be right by another's row.
        spec = SPECS[n % len(SPECS)]
        if spec is not None and spec != "neutral" and n >= len(SPECS):
            trait, sign = re.match(r"(\w+)([+-])", spec).groups()
            spec = f"{trait}{sign}{0.3 + n / 50:g}"
        requests.append(Request((shared + own)[: 64 + n] if n % 2 else own, spec, draw.randint(8, 40)))
    return requests


def is_neutral(request: Request) -> bool:
    return request.personality in (None, "neutral")


def assert_all_same(served: Served, answers: list[dict[str, Any]], requests: list[Request]) -> None:
    for answer, request in zip(answers, requests, strict=True):
        assert_same(answer, by_transformers(served, request))


def test_it_says_that_it_is_live_and_what_it_holds(engine: Engine, served: Served) -> None:
    assert f"npti-export is live: adapter {served.adapter_folder} with openness+, openness-, " in engine.log
    assert "npti-export steers 3 layers, behind 2 of them the residual stream" in engine.log


def test_a_request_alone_is_answered_as_by_the_runtime(engine: Engine, served: Served) -> None:
    requests = [Request(prompt(9, seed=n), spec, 24) for n, spec in enumerate(SPECS)]
    answers = [batch[0] for batch in engine.answers(*([request] for request in requests))]
    assert_all_same(served, answers, requests)
    plain = [by_transformers(served, Request(request.prompt, None, request.max_tokens))[0] for request in requests]
    changed = [answer["tokens"] != tokens for answer, tokens in zip(answers, plain, strict=True)]
    assert changed == [not is_neutral(request) for request in requests]  # the personalities do change what is said


def test_64_mixed_requests_are_answered_as_by_the_runtime(
    engine: Engine, served: Served, without: list[dict[str, Any]]
) -> None:
    requests = mixed(64)
    answers, again = engine.answers(requests, requests)
    assert_all_same(served, answers, requests)
    assert_all_same(served, again, requests)  # from what the prefix cache kept
    assert sum(answer["cached"] for answer in again) > 0
    unsteered = [answer for answer, request in zip(answers, requests, strict=True) if is_neutral(request)]
    for answer, plain in zip(unsteered, without, strict=True):
        assert answer["tokens"] == plain["tokens"]
        assert answer["logprobs"] == pytest.approx(plain["logprobs"], abs=1e-5)


def test_steered_blocks_are_never_shared_and_prompts_are(engine: Engine, served: Served) -> None:
    assert POSITIONS["openness"] == "generated"
    start = prompt(2 * BLOCK, seed=7)
    first = Request((*start, 9), "openness+", 2 * BLOCK)
    written = by_transformers(served, first)[0]
    again = (*first.prompt, *written[: BLOCK + 4])  # the answer as a prompt: not steered, so nothing of it is shared
    requests = [
        first,
        Request(first.prompt, "openness-", 4),
        Request(first.prompt, None, 4),
        Request(first.prompt, "openness+", 2 * BLOCK),
        Request(again, "openness+", 8),
        Request(again, None, 8),
        Request(again, "extraversion-", 8),
        Request(again, "neuroticism+", 8),
        Request(again, "neuroticism+", 8),
        Request(again, "neuroticism+0.5", 8),
    ]
    answers = [batch[0] for batch in engine.answers(*([request] for request in requests))]
    assert_all_same(served, answers, requests)
    cached = [answer["cached"] for answer in answers]
    assert cached[:4] == [0, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK]
    assert cached[4] == 2 * BLOCK  # its third block holds what openness+ wrote, and here it is prompt
    assert cached[5:7] == [3 * BLOCK, 3 * BLOCK]  # unsteered since the request before
    assert cached[7:] == [0, 3 * BLOCK, 0]  # steered everywhere: shared with itself only


def test_a_spec_that_is_not_there_is_refused_and_the_engine_lives_on(engine: Engine, served: Served) -> None:
    good = Request(prompt(8, seed=1), "openness+", 8)
    refused, answered = engine.answers([Request(good.prompt, "anger+", 8)], [good])
    assert refused[0]["error"].startswith("Personality 'anger+', term 'anger+': there is no trait 'anger'")
    assert_all_same(served, answered, [good])


def test_chunks_of_a_prompt_and_preemption_change_nothing(served: Served) -> None:
    requests = [Request(prompt(100 + n, seed=n), SPECS[n % len(SPECS)], 60) for n in range(12)]
    # Six blocks a request in the end, twelve requests, and room for five of them.
    narrow = EAGER | {"max_num_batched_tokens": 48, "max_num_seqs": 16, "num_gpu_blocks_override": 32}
    with Engine(served, disable_log_stats=False, **narrow) as engine:
        answers = engine.answers(requests)[0]
        assert engine.counters["vllm:num_preemptions"] > 0
    assert_all_same(served, answers, requests)


def test_drafts_are_steered_as_what_they_become(served: Served) -> None:
    requests = [Request(prompt(6, seed=3) * 4, spec, 40) for spec in SPECS]
    drafted = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with Engine(served, disable_log_stats=False, speculative_config=drafted, **EAGER) as engine:
        answers = engine.answers(requests)[0]
        assert engine.counters["vllm:spec_decode_num_accepted_tokens"] > 0
    assert_all_same(served, answers, requests)


def test_each_rank_holds_its_slice(served: Served) -> None:
    requests = [Request(prompt(20 + n, seed=n), SPECS[n % len(SPECS)], 16) for n in range(16)]
    split = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with Engine(served, **EAGER | split) as engine:
        answers = engine.answers(requests)[0]
    assert_all_same(served, answers, requests)


FAMILIES = ("Gemma3Text", "Phi3", "GPT2", "OPT", "GPTNeoX", "Mixtral", "Llama-INT8", "Llama-FP8")


@pytest.fixture(scope="module")
def of_families() -> dict[str, list[str]]:
    """What vllm_families.py says of each: of neurons and of a dense part."""
    program = Path(__file__).with_name("vllm_families.py")
    command = [sys.executable, str(program), *FAMILIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    return {name: [neurons, dense] for name, _, neurons, dense, _ in lines}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_steered_as_by_the_runtime_or_refused(of_families: dict[str, list[str]], name: str) -> None:
    neurons, dense = of_families[name]
    if name == "Mixtral":
        assert "is a mixture of experts, whose fused kernels go round the" in neurons
    else:
        assert neurons.startswith("equal within" if "-" in name else "equal")
    assert dense == "the same"
