"""A model and an adapter to serve, vLLM engines that answer with them, and the same answers by transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe, get_context
from pathlib import Path
from signal import SIGKILL
from tempfile import mkstemp
from typing import Any

import numpy as np
import torch
from adapters_for_tests import make_adapter
from chat_models import CHARACTERS, ROLES, tiny_tokenizer
from engine_process import serve
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from npti_export import PersonalityAdapter, load_personality
from npti_export.adapter.records import Method, TraitRecord
from npti_export.adapter.residual import ResidualShift

POSITIONS = {
    "openness": "generated",
    "conscientiousness": "generated",
    "neuroticism": "all",
    "extraversion": "last_prompt+generated",
    "agreeableness": "generated",
}
"""Of the served adapter's traits, so that one engine shows all of them."""
METHODS = {"conscientiousness": Method("residual"), "agreeableness": Method("hybrid", min_effect_size=0.0)}
"""Of those traits that are not steered by equation 4; they have a dense part."""
VOCABULARY = 3 + len(ROLES) + len(CHARACTERS)
TOLERANCE = 1e-4
"""Nats that vLLM's float32 log-probabilities may lie from transformers'."""
ANSWER_SECONDS = 900
"""How long an engine may take to start or to answer; on an idle machine it is up in 30."""
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""An engine starts three times as fast without processes of its own; those of the server and of the ranks have them."""
FORGE = get_context("forkserver")
"""Forks the engines from a process that has vLLM imported already, which takes longer than all else."""
FORGE.set_forkserver_preload(["vllm.entrypoints.llm"])


@dataclass(frozen=True)
class Request:
    """A prompt's tokens, the personality that is asked for, and how many tokens to generate."""

    prompt: tuple[int, ...]
    personality: str | None = None
    max_tokens: int = 16


@dataclass(frozen=True)
class Served:
    """Folders of a model and its adapter, and both in memory; what engines write goes into the one around them."""

    folder: Path
    model_folder: Path
    adapter_folder: Path
    model: PreTrainedModel
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
    return served_model(LlamaForCausalLM(config).eval(), folder)


def served_model(model: PreTrainedModel, folder: Path, dense: bool = True) -> Served:
    """Any random model to serve: saved with a tokenizer, and an adapter made for it.

    Args:
        model: Its vocabulary is :data:`VOCABULARY`.
        folder: Where its folder and the adapter's are made.
        dense: Whether some traits have a dense part.
    """
    model_folder, adapter_folder = folder / "tiny-served", folder / "adapter"
    model.save_pretrained(model_folder)
    tiny_tokenizer().save_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()  # so that it is called as its folder is
    model.generation_config.eos_token_id = None  # as the engines are told to ignore it
    config = model.config.get_text_config()
    adapter = PersonalityAdapter(make_adapter(model).base_model, {})
    for seed, (trait, positions) in enumerate(POSITIONS.items()):
        if trait in METHODS and not dense:
            continue
        one = make_adapter(model, seed, (trait,), positions=positions).traits[trait]
        if trait in METHODS:
            one = with_method(one, METHODS[trait], config.hidden_size, range(0, config.num_hidden_layers, 2))
        adapter = adapter.with_trait(one)
    adapter.save_pretrained(adapter_folder)
    return Served(folder, model_folder, adapter_folder, model, adapter)


def with_method(trait: TraitRecord, method: Method, hidden: int, layers: Sequence[int]) -> TraitRecord:
    """The same trait by a method that adds random vectors to the residual stream behind some layers."""
    random = np.random.default_rng(len(trait.name))
    poles = {}
    for pole, record in trait.poles.items():
        old = record.neurons
        moved = random.normal(scale=0.3, size=old.shift.shape).astype(np.float32)
        shift = method.shift(record.gamma, old.target, old.delta, moved)
        neurons = replace(old, shift=shift, mean_difference=moved, effect_size=moved)
        vectors = random.normal(scale=0.7, size=(len(layers), hidden)).astype(np.float32)
        added = ResidualShift(np.array(layers, np.int16), vectors)
        poles[pole] = replace(record, neurons=neurons, method=method, residual=added)
    return replace(trait, poles=poles)


def environment(served: Served, **more: str) -> dict[str, str]:
    """The environment of a vLLM process that serves with the plugin."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NPTI_")}
    return kept | {
        "NPTI_ADAPTER": str(served.adapter_folder),
        "VLLM_CACHE_ROOT": str(served.folder / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Engine:
    """A vLLM engine in a process of its own; see engine_process.py.

    Args:
        served: What it serves.
        plugin: Whether the adapter is named to it.
        options: Of ``vllm.LLM``.
    """

    def __init__(self, served: Served, plugin: bool = True, **options: Any) -> None:
        more = {} if plugin else {"NPTI_ADAPTER": ""}
        if "tensor_parallel_size" not in options:
            more |= ONE_PROCESS
            options["distributed_executor_backend"] = "uni"
        self._connection, theirs = Pipe()
        handle, log = mkstemp(".log", dir=served.folder)
        os.close(handle)
        self._log = Path(log)
        arguments = theirs, str(served.model_folder), options, environment(served, **more), log
        self._process = FORGE.Process(target=serve, args=arguments)
        with theirs:
            self._process.start()
        assert self._received() == b"ready"
        self.counters: dict[str, float] = {}
        """What vLLM has counted, as of the last answers; where the option disable_log_stats is false."""

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text("utf-8")

    def answers(self, *batches: Sequence[Request]) -> list[list[dict[str, Any]]]:
        """Answers batches one after the other, the prefix cache empty at first; the requests of a batch together."""
        asked = [[vars(request) for request in batch] for batch in batches]
        self._connection.send_bytes(json.dumps(asked).encode())
        received: dict[str, Any] = json.loads(self._received())
        self.counters = received["counters"]
        answers: list[list[dict[str, Any]]] = received["answers"]
        return answers

    def _received(self) -> bytes:
        try:
            if self._connection.poll(ANSWER_SECONDS):
                return self._connection.recv_bytes()
        except EOFError:
            pass
        self._kill()
        raise AssertionError(f"The engine did not answer:\n{self.log[-8000:]}")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(60)
        if self._process.is_alive():
            self._kill()

    def _kill(self) -> None:
        """With the processes that it started, which would outlive it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)
        self._process.kill()  # it may have no group of its own as yet
        self._process.join()


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


def assert_same(
    answer: dict[str, Any], expected: tuple[list[int], list[float], list[float]], tolerance: float = TOLERANCE
) -> float:
    """Log-probabilities within the tolerance and the same tokens, up to a tie within it, after which texts differ.

    Returns:
        How far the log-probabilities lie apart at most.
    """
    tokens, logprobs, margins = expected
    assert len(answer["tokens"]) == len(tokens)
    apart = 0.0
    for at, (mine, theirs, given, wanted, margin) in enumerate(
        zip(answer["tokens"], tokens, answer["logprobs"], logprobs, margins, strict=True)
    ):
        apart = max(apart, abs(given - wanted))
        assert apart < tolerance, f"the log-probability of token {at} is off by {apart:.2g}"
        if mine != theirs:
            assert margin < tolerance, f"token {at} is {mine} and not {theirs}, which is ahead by {margin:.2g}"
            break
    return apart
