"""One vLLM engine in a process of its own, which answers batches of requests until its connection is closed.

    python engine_process.py CONNECTION MODEL OPTIONS

CONNECTION is the number of an open connection of multiprocessing's, MODEL a folder, OPTIONS those of vllm.LLM as JSON.
What comes in is JSON, [[{"prompt": [tokens], "personality": "openness+" or null, "max_tokens": 8}, …], …]: the requests
of a batch run together, the batches one after the other, the prefix cache empty at first. What goes out holds in
"answers" for each request its tokens, their log-probabilities and how many tokens of its prompt came from the prefix
cache, or in "error" why it was refused; and in "counters" what vLLM has counted, where disable_log_stats is false.
"""

from __future__ import annotations

import json
import sys
from multiprocessing.connection import Connection
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


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    from vllm import LLM

    llm = LLM(sys.argv[2], dtype="float32", max_model_len=256, seed=0, **json.loads(sys.argv[3]))
    connection.send_bytes(b"ready")
    while True:
        try:
            batches = json.loads(connection.recv_bytes())
        except EOFError:
            return
        assert llm.reset_prefix_cache()
        answers = [answer(llm, batch) for batch in batches]
        connection.send_bytes(json.dumps({"answers": answers, "counters": counters(llm)}).encode())


if __name__ == "__main__":  # vLLM starts its processes anew and imports this file there
    main()
