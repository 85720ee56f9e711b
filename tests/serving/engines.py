"""A model and an adapter to serve, vLLM engines that answer with them, and the same answers by transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adapters_for_tests import make_adapter
from chat_models import CHARACTERS, ROLES, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality

POSITIONS = {"openness": "generated", "neuroticism": "all", "extraversion": "last_prompt+generated"}
"""Of the served adapter's traits, so that one engine shows all of them."""
VOCABULARY = 3 + len(ROLES) + len(CHARACTERS)
TOLERANCE = 1e-4
"""Nats that vLLM's float32 log-probabilities may lie from transformers'."""


@dataclass(frozen=True)
class Request:
    """A prompt's tokens, the personality that is asked for, and how many tokens to generate."""

    prompt: tuple[int, ...]
    personality: str | None = None
    max_tokens: int = 16


@dataclass(frozen=True)
class Served:
    """Folders of a model and its adapter, and both in memory."""

    model_folder: Path
    adapter_folder: Path
    model: LlamaForCausalLM
    adapter: PersonalityAdapter


def made_to_serve(folder: Path, layers: int = 3) -> Served:
    """A random float32 Llama with heads as wide as vLLM wants them, its tokenizer, and an adapter for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        # Larger than usual, so that logits are far enough apart for a personality to change tokens.
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model_folder, adapter_folder = folder / "tiny-served", folder / "adapter"
    model.save_pretrained(model_folder)
    tiny_tokenizer().save_pretrained(model_folder)
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()  # so that it is called as its folder is
    model.generation_config.eos_token_id = None  # as the engines are told to ignore it
    adapter = PersonalityAdapter(make_adapter(model).base_model, {})
    for seed, (trait, positions) in enumerate(POSITIONS.items()):
        one = make_adapter(model, seed, (trait,), positions=positions)
        adapter = adapter.with_trait(one.traits[trait])
    adapter.save_pretrained(adapter_folder)
    return Served(model_folder, adapter_folder, model, adapter)


def environment(adapter: Path | None, **more: str) -> dict[str, str]:
    """The environment of a vLLM process; with an adapter the plugin is live in it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NPTI_")}
    kept |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return kept | ({} if adapter is None else {"NPTI_ADAPTER": str(adapter)}) | more


def run_engine(
    folder: Path, served: Served, batches: list[list[Request]], plugin: bool = True, **engine: Any
) -> list[list[dict[str, Any]]]:
    """Answers batches of requests with a vLLM engine in a process of its own; see engine_process.py."""
    job, result = folder / "job.json", folder / "result.json"
    asked = [[vars(request) for request in batch] for batch in batches]
    job.write_text(json.dumps({"model": str(served.model_folder), "engine": engine, "batches": asked}), "utf-8")
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("engine_process.py")), str(job), str(result)]
    env = environment(served.adapter_folder if plugin else None, VLLM_CACHE_ROOT=str(folder / "vllm-cache"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    answers: list[list[dict[str, Any]]] = json.loads(result.read_text("utf-8"))
    return answers


@torch.no_grad()
def by_transformers(served: Served, request: Request) -> tuple[list[int], list[float], list[float]]:
    """The runtime's greedy answer: tokens, their log-probabilities, and how far the second choice was behind."""
    ids = torch.tensor([request.prompt])
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    with load_personality(served.model, request.personality, served.adapter):
        done = served.model.generate(ids, max_new_tokens=request.max_tokens, **options)
    tokens = done.sequences[0, ids.shape[1] :].tolist()
    logprobs = torch.cat(done.logits).double().log_softmax(-1)
    best = logprobs.topk(2).values
    return (
        tokens,
        [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)],
        (best[:, 0] - best[:, 1]).tolist(),
    )


def assert_same(answer: dict[str, Any], expected: tuple[list[int], list[float], list[float]]) -> None:
    """Log-probabilities within the tolerance and the same tokens, up to a tie within it, after which texts differ."""
    tokens, logprobs, margins = expected
    assert len(answer["tokens"]) == len(tokens)
    for mine, theirs, at, there, margin in zip(
        answer["tokens"], tokens, answer["logprobs"], logprobs, margins, strict=True
    ):
        assert abs(at - there) < TOLERANCE
        if mine != theirs:
            assert margin < TOLERANCE
            return
