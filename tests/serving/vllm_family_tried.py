"""One family in a vLLM engine, in a process of its own: every answer of a mixed batch against the runtime's."""

from __future__ import annotations

import os
import tempfile
import traceback
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engine_process import answer, settle, speak_into
from engines import ONE_PROCESS, TOLERANCE, Request, assert_same, by_transformers, environment, served_model
from torch import nn
from vllm_family_list import Family
from vllm_weights import quantise

PROMPT = (10, 11, 12, 13, 14, 15, 16, 9, 20)
NEURONS = (None, "openness+", "neuroticism-0.7", "extraversion+")
DENSE = ("conscientiousness+", "agreeableness-1.2")
SECONDS = 900


def result_of(family: Family, dense: bool, log: Path) -> tuple[str, str]:
    """Whose code vLLM runs, and ``equal`` or why not.

    Args:
        family: Which.
        dense: Whether the adapter has a dense part too.
        log: Where everything goes that is said in the process.
    """
    forked: Any = get_context("fork")  # of a process that has vLLM imported; that takes longer than the rest
    mine, theirs = forked.Pipe()
    process = forked.Process(target=_try_and_tell, args=(family, dense, log, theirs))
    process.start()
    theirs.close()
    result: tuple[str, str] = "–", f"no answer in {SECONDS} s"
    try:
        if mine.poll(SECONDS):
            result = mine.recv()
    except EOFError:
        result = "–", "the process ended"
    if process.is_alive():
        process.join(10)
        process.kill()
    process.join()
    return result


def _try_and_tell(family: Family, dense: bool, log: Path, told: Connection) -> None:
    speak_into(log)
    code = "–"
    try:
        model = family.made()
        code = code_of(model)
        result = tried(family, model, dense)
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    told.send((code, result))
    told.close()
    os._exit(0)


def code_of(model: nn.Module) -> str:
    """Whose implementation of a model vLLM runs."""
    from vllm.model_executor.models import registry

    module, _ = registry._VLLM_MODELS.get(type(model).__name__, ("transformers", ""))
    if module == "transformers":
        return "transformers'"
    # Here, because vLLM does not say what this lacks.
    import_module(module if "." in module else f"vllm.model_executor.models.{module}")
    return "vLLM's"


def tried(family: Family, model: nn.Module, dense: bool) -> str:
    """``equal``, and within how many nats where more than the usual is allowed.

    Args:
        family: Which.
        model: Of the family.
        dense: Whether the adapter has a dense part too.

    Raises:
        AssertionError: If an answer is not the runtime's; it says whose.
    """
    from vllm import LLM

    served = served_model(model, Path(tempfile.mkdtemp()), dense)
    if family.weights is not None:
        quantise(served, family.weights)
    requests = [Request(PROMPT, spec, 12) for spec in (NEURONS + DENSE if dense else NEURONS)]
    # Before there is an engine: where vLLM runs transformers' code it changes these classes for good.
    expected = [by_transformers(served, request) for request in requests]
    settle(environment(served, **ONE_PROCESS))
    llm = LLM(
        str(served.model_folder),
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        seed=0,
        distributed_executor_backend="uni",
    )
    answers = answer(llm, [vars(request) | {"prompt": list(request.prompt)} for request in requests])
    apart = []
    for request, given, of_runtime in zip(requests, answers, expected, strict=True):
        try:
            apart.append(assert_same(given, of_runtime, family.tolerance))
        except AssertionError as error:
            raise AssertionError(f"{request.personality or 'unsteered'}: {error}") from error
    for request, given in zip(requests[1:], answers[1:], strict=True):
        moved = max(
            abs(steered - plain) for steered, plain in zip(given["logprobs"], answers[0]["logprobs"], strict=True)
        )
        assert moved > 5 * family.tolerance, f"{request.personality} moves log-probabilities by {moved:.2g} at most"
    return "equal" if family.tolerance == TOLERANCE else f"equal within {max(apart):.1g}"
