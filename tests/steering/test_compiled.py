"""torch.compile: whatever is switched compiles nothing anew, and what comes out is what comes out uncompiled."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from adapters_for_tests import with_dense_parts
from tiny_models import tiny
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import CompileConfig, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
SWITCHES = ["openness+", "neuroticism-0.5", None, ["openness-", None], ["openness+", "neuroticism-"], "openness+0.3"]


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return with_dense_parts(tiny_adapter(tiny_llama), 32, layers=[1])


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits


@pytest.mark.parametrize("first", ["openness+", None, ["openness+", None]], ids=str)
def test_switching_compiles_nothing(tiny_llama, adapter, first: object) -> None:
    compiled = torch.compile(tiny_llama, backend="eager")
    plain = logits(tiny_llama)
    with load_personality(tiny_llama, first, adapter, positions="all") as personality:
        assert torch.equal(logits(compiled), logits(tiny_llama))
        graphs = counters["stats"]["unique_graphs"]
        with torch.compiler.set_stance("fail_on_recompile"):
            for spec in SWITCHES:
                personality.set(spec)
                steered = logits(compiled)
                assert torch.equal(steered, logits(tiny_llama))
                assert torch.equal(steered, plain) == (spec is None)
            personality.strength = 0.7
            assert torch.equal(logits(compiled), logits(tiny_llama))
            with personality.using("neuroticism+"):
                assert torch.equal(logits(compiled), logits(tiny_llama))
        assert counters["stats"]["unique_graphs"] == graphs == 2  # the decoder's, and the head's behind it
    assert torch.equal(logits(compiled), plain)


def test_rows_on_flattened_tokens(tiny_adapter) -> None:
    model = tiny("OPT", ffn_dim=48, word_embed_proj_dim=32, initializer_range=0.3)
    compiled = torch.compile(model, backend="eager")
    with load_personality(model, ["openness+", None], tiny_adapter(model), positions="all") as personality:
        mixed = logits(compiled)
        assert torch.equal(mixed, logits(model))
        personality.set(None)
        plain = logits(compiled)
    assert torch.equal(mixed[1], plain[1])
    assert not torch.equal(mixed[0], plain[0])


def test_adapter_that_draws_random_numbers(tiny_llama, tiny_adapter) -> None:
    """Dropout of shifts goes the way through Python; both ways draw the same numbers."""
    compiled = torch.compile(tiny_llama, backend="eager")
    with load_personality(tiny_llama, "openness+", tiny_adapter(tiny_llama, dropout=0.5), positions="all"):
        drawn = []
        for model in (tiny_llama, compiled, compiled):
            torch.manual_seed(len(drawn) // 2)
            drawn.append(logits(model))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_threads_have_each_their_own(tiny_llama, adapter) -> None:
    specs = [f"openness{sign}{strength}" for sign in "+-" for strength in (0.5, 1, 1.5, 2)]
    compiled = torch.compile(tiny_llama, backend="eager")

    def work(spec: str) -> list[Tensor]:
        with personality.using(spec):
            return [logits(compiled) for _ in range(5)]

    with load_personality(tiny_llama, None, adapter, positions="all") as personality:
        logits(compiled)
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(work, specs))
        for spec, outputs in zip(specs, together, strict=True):
            personality.set(spec)
            assert all(torch.equal(output, logits(tiny_llama)) for output in outputs)


def test_block_replaced_after_compiling_is_noticed(tiny_llama, adapter) -> None:
    compiled = torch.compile(tiny_llama, backend="eager")
    with load_personality(tiny_llama, "openness+", adapter, positions="all"):
        logits(compiled)
        mlp = tiny_llama.model.layers[1].mlp
        mlp.forward = lambda x: mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        with pytest.raises(NptiError, match=r"2 of 3 activations .* were called in this forward"):
            logits(compiled)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_code_that_inductor_writes(tiny_llama, adapter, mode: str) -> None:
    """Neutral is the compiled model without tables bit for bit; what is steered is near what is uncompiled."""
    compiled = torch.compile(tiny_llama, mode=mode)
    plain = logits(compiled)
    with load_personality(tiny_llama, None, adapter, positions="all") as personality:
        assert torch.equal(logits(compiled), plain)
        with torch.compiler.set_stance("fail_on_recompile"):
            for spec in SWITCHES:
                personality.set(spec)
                torch.testing.assert_close(logits(compiled), logits(tiny_llama), rtol=1e-4, atol=1e-4)
            personality.set(["openness+", None])
            assert torch.equal(logits(compiled)[1], plain[1])
    assert torch.equal(logits(compiled), plain)


@pytest.mark.slow
def test_generate_with_a_static_cache_compiles_once(tiny_llama, adapter) -> None:
    compiling = CompileConfig(mode="default")
    compiling._compile_all_devices = True
    ways = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}

    def tokens(**compiled: object) -> Tensor:
        return tiny_llama.generate(IDS, **ways, **compiled)

    with load_personality(tiny_llama, "openness+", adapter) as personality:
        tokens(compile_config=compiling)
        with torch.compiler.set_stance("fail_on_recompile"):
            outputs = []
            for spec in SWITCHES:
                personality.set(spec)
                outputs.append(tokens(compile_config=compiling))
        for spec, output in zip(SWITCHES, outputs, strict=True):
            personality.set(spec)
            assert torch.equal(output, tokens(disable_compile=True))
