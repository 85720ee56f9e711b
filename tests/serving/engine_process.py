"""One vLLM engine in a process of its own, which answers batches of requests until its connection is closed.

What comes in is JSON, [[{"prompt": [tokens], "personality": "openness+" or null, "max_tokens": 8}, …], …]: the requests
of a batch run together, the batches one after the other, the prefix cache empty at first. What goes out holds in
"answers" for each request its tokens, their log-probabilities and how many tokens of its prompt came from the prefix
cache, or in "error" why it was refused; and in "counters" what vLLM has counted, where disable_log_stats is false.
"""

from __future__ import annotations

import json
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def answer(llm: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=request["max_tokens"],
            ignore_eos=True,
            logprobs=1,
            detokenize=False,
            extra_args=None if request["personality"] is None else {"personality": request["personality"]},
        )
        for request in requests
    ]
    try:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    except ValueError as error:
        return [{"error": str(error)} for _ in requests]
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": [
                at[token].logprob
                for token, at in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
            ],
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]


def counters(llm: Any) -> dict[str, float]:
    if not llm.llm_engine.log_stats:
        return {}
    return {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}


def speak_into(log: str | Path) -> None:
    """Lets everything that the process says go into a file."""
    with open(log, "w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)


def settle(environment: dict[str, str]) -> None:
    """Makes a process that was forked with vLLM imported one of its own, with this environment."""
    import torch
    from vllm.model_executor.models import registry

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which is read when torch is imported
    # vLLM looks at a model's class in yet another process, which imports everything anew.
    registry._run_in_subprocess = lambda function: function()


def serve(connection: Connection, model: str, options: dict[str, Any], environment: dict[str, str], log: str) -> None:
    """Runs the engine.

    Args:
        connection: Brings what is asked and takes the answers.
        model: A folder.
        options: Of vllm.LLM.
        environment: Of the process.
        log: Where it writes what vLLM says.
    """
    os.setsid()  # it can be ended with the processes that it starts
    speak_into(log)
    settle(environment)
    from vllm import LLM

    llm = LLM(model, dtype="float32", max_model_len=256, seed=0, **options)
    connection.send_bytes(b"ready")
    while True:
        try:
            batches = json.loads(connection.recv_bytes())
        except EOFError:
            return
        assert llm.reset_prefix_cache()
        answers = [answer(llm, batch) for batch in batches]
        connection.send_bytes(json.dumps({"answers": answers, "counters": counters(llm)}).encode())
