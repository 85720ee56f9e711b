"""Several processes that share the work of identification (torchrun, accelerate launch), and putting it together.

All of them run the same program on the same batches, which are made before they are divided; what decides anything is
either a whole number that is added up exactly, or comes from the first process. So any number of processes writes the
same bytes. Where there is no process group, there is one process and nothing here does anything.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from npti_export.errors import NptiError

T = TypeVar("T")


def join() -> None:
    """Joins the processes that torchrun or accelerate launch has started; only the first one speaks from then on.

    Each process takes the GPU of its own number, where there are any.

    Raises:
        NptiError: If the others cannot be found.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or (dist.is_available() and dist.is_initialized()):
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise NptiError(
            f"This is to be one of {os.environ['WORLD_SIZE']} processes, but they cannot be joined "
            f"({str(error).splitlines()[0]}); start them with torchrun or accelerate launch."
        ) from None
    atexit.register(dist.destroy_process_group)
    if number():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def processes() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def in_turns(batches: Sequence[Sequence[T]]) -> Iterator[tuple[Sequence[T] | None, list[Sequence[T]]]]:
    """Goes through batches, a turn for as many as there are processes: this process's batch, and those of all.

    Its own is None where a last turn has none left for it.

    >>> list(in_turns([[1, 2], [3]]))
    [([1, 2], [[1, 2]]), ([3], [[3]])]
    """
    every, mine = processes(), number()
    for begin in range(0, len(batches), every):
        turn = list(batches[begin : begin + every])
        yield (turn[mine] if mine < len(turn) else None), turn


def from_all(value: T) -> list[T]:
    """What every process brings, in their order; none goes on before all have brought theirs."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def add_up(*counts: Tensor) -> None:
    """Adds up whole numbers over all processes, in place and exactly.

    Args:
        counts: Integer tensors of the same shape in every process.
    """
    if processes() > 1:
        for count in counts:
            dist.all_reduce(count)


def first_does(work: Callable[[], T]) -> T:
    """Lets the first process do what only one may do, such as writing a file; all get what it returned or raised.

    Args:
        work: Done once all have come here; must not wait for the other processes itself.
    """
    if processes() == 1:
        return work()
    from_all(None)
    done: tuple[T | None, Exception | None] = (None, None)
    if number() == 0:
        try:
            done = work(), None
        except NptiError as error:
            done = None, error
    result, raised = from_all(done)[0]
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value]
