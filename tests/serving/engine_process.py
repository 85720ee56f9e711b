"""One vLLM engine in a process of its own: reads a job as JSON, writes what every request was answered as JSON.

    python engine_process.py JOB RESULT

A job is {"model": folder, "engine": {options of vllm.LLM}, "batches": [[{"prompt": [tokens], "personality": "openness+"
or null, "max_tokens": 8}, …], …]}; the requests of a batch run together, the batches one after the other. The result
holds for each request its tokens, their log-probabilities, how many tokens of its prompt came from the prefix cache, or
in "error" why it was refused.
"""

from __future__ import annotations

import json
import sys
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
            extra_args=None if request.get("personality") is None else {"personality": request["personality"]},
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


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from vllm import LLM

    llm = LLM(job["model"], dtype="float32", max_model_len=256, seed=0, **job["engine"])
    answers = [answer(llm, batch) for batch in job["batches"]]
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":  # vLLM starts its processes anew and imports this file there
    main()
