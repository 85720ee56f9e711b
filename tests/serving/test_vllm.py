"""Personalities in real vLLM engines: each answer against the transformers runtime's for the same personality."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from engines import POSITIONS, VOCABULARY, Request, Served, assert_same, by_transformers, made_to_serve, run_engine

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
)
BLOCK = 32
EAGER = {"enforce_eager": True, "block_size": BLOCK, "enable_prefix_caching": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return made_to_serve(tmp_path_factory.mktemp("served"))


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
            sign = "+" if "+" in spec else "-"
            spec = f"{spec.split(sign)[0]}{sign}{0.3 + n / 50:g}"
        requests.append(Request((shared + own)[: 64 + n] if n % 2 else own, spec, draw.randint(8, 40)))
    return requests


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_alone_and_in_a_mixed_batch_answers_are_the_runtimes(served: Served, tmp_path: Path, mode: str) -> None:
    engine = EAGER | {"enforce_eager": mode == "eager"}
    alone = [Request(prompt(9, seed=n), spec, 24) for n, spec in enumerate(SPECS)]
    together = mixed(64)
    # Plain first, so that a graph that was compiled and kept without tables would be found by the steered engine.
    untouched = [request for request in together if request.personality in (None, "neutral")]
    without = run_engine(tmp_path, served, [untouched], plugin=False, **engine)[0]
    answers = run_engine(tmp_path, served, [*([request] for request in alone), together, together], **engine)
    expected = [by_transformers(served, request) for request in [*alone, *together]]
    for answer, reference in zip([*(batch[0] for batch in answers[:-2]), *answers[-2]], expected, strict=True):
        assert_same(answer, reference)
    for answer, reference in zip(answers[-1], expected[len(alone) :], strict=True):  # from what the cache kept
        assert_same(answer, reference)
    assert sum(answer["cached"] for answer in answers[-1]) > 0
    plain = [by_transformers(served, Request(request.prompt, None, request.max_tokens)) for request in alone]
    steered = [reference[0] != untouched[0] for reference, untouched in zip(expected, plain, strict=False)]
    assert sum(steered) >= 5  # the personalities do change what is said
    mine = [answer for answer, request in zip(answers[-2], together, strict=True) if request in untouched]
    for answer, other in zip(mine, without, strict=True):
        assert answer["tokens"] == other["tokens"]
        assert answer["logprobs"] == pytest.approx(other["logprobs"], abs=1e-5)


def test_steered_blocks_are_never_shared_and_prompts_are(served: Served, tmp_path: Path) -> None:
    assert POSITIONS["openness"] == "generated"
    start = prompt(2 * BLOCK, seed=7)
    first = Request((*start, 9), "openness+", 2 * BLOCK)
    written = by_transformers(served, first)[0]
    again = (*first.prompt, *written[: BLOCK + 4])  # the answer as a prompt: not steered, so nothing of it is shared
    batches = [
        [first],
        [Request(first.prompt, "openness-", 4)],
        [Request(first.prompt, None, 4)],
        [Request(first.prompt, "openness+", 2 * BLOCK)],
        [Request(again, "openness+", 8)],
        [Request(again, None, 8)],
        [Request(again, "extraversion-", 8)],
        [Request(again, "neuroticism+", 8)],
        [Request(again, "neuroticism+", 8)],
        [Request(again, "neuroticism+0.5", 8)],
    ]
    answers = [batch[0] for batch in run_engine(tmp_path, served, batches, **EAGER)]
    for answer, (request,) in zip(answers, batches, strict=True):
        assert_same(answer, by_transformers(served, request))
    cached = [answer["cached"] for answer in answers]
    assert cached[:4] == [0, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK]
    assert cached[4] == 2 * BLOCK  # its third block holds what openness+ wrote, and here it is prompt
    assert cached[5:7] == [3 * BLOCK, 3 * BLOCK]  # unsteered since the request before
    assert cached[7:] == [0, 3 * BLOCK, 0]  # steered everywhere: shared with itself only


def test_chunks_of_a_prompt_and_preemption_change_nothing(served: Served, tmp_path: Path) -> None:
    requests = [Request(prompt(100 + n, seed=n), SPECS[n % len(SPECS)], 60) for n in range(12)]
    answers = run_engine(
        tmp_path,
        served,
        [requests],
        # Five blocks a request in the end, twelve requests, and room for six of them.
        **EAGER | {"max_num_batched_tokens": 48, "max_num_seqs": 16, "num_gpu_blocks_override": 32},
    )[0]
    for answer, request in zip(answers, requests, strict=True):
        assert_same(answer, by_transformers(served, request))


def test_drafts_are_steered_as_what_they_become(served: Served, tmp_path: Path) -> None:
    repeated = prompt(6, seed=3) * 4
    requests = [Request(repeated, spec, 40) for spec in SPECS]
    drafted = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    answers = run_engine(tmp_path, served, [requests], speculative_config=drafted, **EAGER)[0]
    for answer, request in zip(answers, requests, strict=True):
        assert_same(answer, by_transformers(served, request))


def test_a_spec_that_is_not_there_is_refused_and_the_engine_lives_on(served: Served, tmp_path: Path) -> None:
    good = Request(prompt(8, seed=1), "openness+", 8)
    bad = Request(prompt(8, seed=1), "anger+", 8)
    refused, answered = run_engine(tmp_path, served, [[bad], [good]], **EAGER)
    assert refused[0]["error"].startswith("Personality 'anger+', term 'anger+': there is no trait 'anger'")
    assert_same(answered[0], by_transformers(served, good))


def test_each_rank_holds_its_slice(served: Served, tmp_path: Path) -> None:
    requests = [Request(prompt(20 + n, seed=n), SPECS[n % len(SPECS)], 16) for n in range(16)]
    split = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    answers = run_engine(tmp_path, served, [requests], **EAGER | split)[0]
    for answer, request in zip(answers, requests, strict=True):
        assert_same(answer, by_transformers(served, request))
