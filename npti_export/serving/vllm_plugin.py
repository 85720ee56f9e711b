"""Puts the plugin into a process of vLLM: requests are read, prefix-cache blocks told apart, the model steered.

vLLM offers no seam for any of the three, so one function each is wrapped: the front end's ``process_inputs``, the
scheduler's ``generate_block_hash_extra_keys`` and the worker's ``init_device``. Where a version of vLLM lacks one of
them, it is refused.
"""

from __future__ import annotations

import os
from typing import Any

from npti_export.errors import NptiError
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.settings import ServingSettings
from npti_export.serving.vllm_frontend import wrap_front_end
from npti_export.serving.vllm_worker import wrap_worker

RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
REFUSED_VARIABLES = {
    # The second model runner lays a step out in other buffers; the first is there in every version that is supported.
    RUNNER_VARIABLE: "personalities are steered on the first model runner",
    "VLLM_USE_RUST_FRONTEND": "personalities are read by the front end in Python",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "a personality behind a misspelled model's name would silently come to nothing",
}
"""Settings of vLLM with which something would not be steered, and why."""

_installed = False


def install() -> None:
    """Installs the plugin in this process, once.

    Raises:
        NptiError: If the adapter cannot be served, or this vLLM is not one that can be steered.
    """
    global _installed
    if _installed:
        return
    for variable, why in REFUSED_VARIABLES.items():
        if os.environ.get(variable, "0").lower() not in ("", "0", "false"):
            raise NptiError(f"{variable} is set, and {why}; unset it.")
    os.environ[RUNNER_VARIABLE] = "0"
    settings = ServingSettings.from_environment()
    try:
        wrap_front_end(settings)
        wrap_scheduler(settings.personalities())
        wrap_worker(settings)
    except (ImportError, AttributeError) as error:
        import vllm

        raise NptiError(
            f"vLLM {vllm.__version__} cannot be steered: {error}; this release of npti-export serves with vLLM 0.32."
        ) from error
    _installed = True


def wrap_scheduler(served: ServedPersonalities) -> None:
    """Lets the personality into the hash of every prefix-cache block that holds a steered token.

    Args:
        served: Tells the blocks apart.
    """
    from vllm.v1.core import block_pool, kv_cache_utils

    original = kv_cache_utils.generate_block_hash_extra_keys

    def with_personality(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        if request.sampling_params is not None:
            key = served.block_key(
                request.sampling_params.extra_args, request.num_prompt_tokens, start_token_idx, end_token_idx
            )
            if key is not None:
                keys = (*(keys or ()), key)
        return keys, next_mm_idx

    # The pool of blocks, which publishes what is in the cache, holds a name of its own for the function.
    for module in (kv_cache_utils, block_pool):
        if getattr(module, original.__name__) is not original:
            raise AttributeError(f"{module.__name__} does not use the scheduler's {original.__name__}")
        setattr(module, original.__name__, with_personality)
