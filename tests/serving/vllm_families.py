"""Families of models that vLLM serves, tiny and random, each against the transformers runtime.

    python tests/serving/vllm_families.py [NAME …]

prints the table of docs/serving.md, a line a family, as soon as it is known. Each is tried in a process of its own,
made from one that has vLLM imported already.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # as pytest has them

import torch
from engine_process import answer
from engines import ONE_PROCESS, VOCABULARY, Request, assert_same, by_transformers, environment, served_model

PROMPT = (10, 11, 12, 13, 14, 15, 16, 9, 20)
NEURONS = (None, "openness+", "neuroticism-0.7", "extraversion+")
DENSE = ("conscientiousness+", "agreeableness-1.2")
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
SECONDS = 900


@dataclass(frozen=True)
class Family:
    """A family by the name of its config class, without ``Config``, and what a tiny one needs beside the usual."""

    name: str
    sizes: dict[str, object] = field(default_factory=dict)


GPT = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_inner": 192, "n_positions": 256}
HEAD = {"head_dim": 32}
FAMILIES = [
    *(Family(name) for name in ("Llama", "Mistral", "Qwen2", "Granite", "StableLm", "Olmo2", "Cohere")),
    *(Family(name, HEAD) for name in ("Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Glm4", "Exaone4", "Cohere2")),
    *(Family(name, HEAD) for name in ("SeedOss", "Ernie4_5", "SmolLM3", "Helium")),
    Family("Phi3"),
    Family("GPT2", GPT),
    Family("GPTJ", {**GPT, "rotary_dim": 32}),
    Family("GPTNeoX"),
    Family("OPT", {"ffn_dim": 192, "word_embed_proj_dim": 128}),
    Family("Bloom", {"n_layer": 3, "n_head": 4, "intermediate_size": 512}),
    Family("Falcon", {"ffn_hidden_size": 512, "alibi": False, "new_decoder_architecture": False}),
    Family("Phi"),
    Family("Starcoder2"),
    Family("Nemotron"),
    Family("Apertus"),
    Family("Arcee"),
    Family("Lfm2", {"block_auto_adjust_ff_dim": False, "layer_types": ["full_attention"] * 3}),
    Family("Mixtral", {"num_local_experts": 4}),
    Family("Qwen3Moe", {**HEAD, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}),
]


def tried(family: Family, dense: bool) -> str:
    """``equal``, or why not; for each request of a mixed batch the answer against the runtime's."""
    import transformers
    from vllm import LLM
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in yet another process, which imports everything anew.
    registry._run_in_subprocess = lambda function: function()
    torch.manual_seed(0)
    config = getattr(transformers, f"{family.name}Config")(**SIZES | family.sizes)
    folder = Path(tempfile.mkdtemp())
    served = served_model(transformers.AutoModelForCausalLM.from_config(config).eval(), folder, dense)
    os.environ.update(environment(served, **ONE_PROCESS))
    llm = LLM(
        str(served.model_folder),
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        seed=0,
        distributed_executor_backend="uni",
    )
    requests = [Request(PROMPT, spec, 12) for spec in (NEURONS + DENSE if dense else NEURONS)]
    answers = answer(llm, [vars(request) | {"prompt": list(request.prompt)} for request in requests])
    steered = 0
    for request, given in zip(requests, answers, strict=True):
        assert_same(given, by_transformers(served, request))
        steered += given["logprobs"] != answers[0]["logprobs"]
    assert steered == len(requests) - 1, "a personality changed nothing"
    return "equal"


def _try_and_tell(family: Family, dense: bool, log: Path, told: Connection) -> None:
    with log.open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    try:
        result = tried(family, dense)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        result = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    told.send(result)
    told.close()
    os._exit(0)


def result_of(family: Family, dense: bool, log: Path) -> str:
    """What :func:`tried` says in a process of its own.

    Args:
        family: Which.
        dense: Whether the adapter has a dense part too.
        log: Where everything goes that is said there.
    """
    forked: Any = get_context("fork")
    mine, theirs = forked.Pipe()
    process = forked.Process(target=_try_and_tell, args=(family, dense, log, theirs))
    process.start()
    theirs.close()
    try:
        result: str = mine.recv() if mine.poll(SECONDS) else f"no answer in {SECONDS} s"
    except EOFError:
        result = "the process ended"
    if process.is_alive():
        process.join(10)
        process.kill()
    process.join()
    return result


def results(family: Family, log: Path) -> tuple[str, str]:
    """For neurons and for dense parts; a family that takes both is tried once."""
    both = result_of(family, True, log)
    return (both, both) if both == "equal" else (result_of(family, False, log.with_suffix(".neurons.log")), both)


def main() -> None:
    import vllm  # noqa: F401

    named = sys.argv[1:]
    logs = Path(tempfile.mkdtemp())
    print(f"logs: {logs}", file=sys.stderr)
    print("| family | neurons | dense part |\n|---|---|---|")
    for family in FAMILIES:
        if not named or family.name in named:
            neurons, dense = results(family, logs / f"{family.name}.log")
            print(f"| {family.name} | {neurons} | {'the same' if dense == neurons else dense} |", flush=True)


if __name__ == "__main__":
    main()
