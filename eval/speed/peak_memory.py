"""How much memory a piece of work takes at its peak, above what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
M_MMAP_THRESHOLD, MAPPED_FROM = -3, 128 * 1024
"""The first setting of glibc's mallopt, in bytes. It begins at that and then grows up to 32 MiB with what is freed, and
smaller blocks are not given back to the system when they are; where it stays, what is resident is what is in use. Of
five passes over npti-demo the peaks were between 51 and 108 MB without it, and the last four within .2 MB with it."""


@dataclass(frozen=True)
class Peak:
    """What was held, in bytes: on a GPU by torch, on a CPU by the process, as far as it is resident.

    Args:
        before: Before the work: the model, and on a CPU the libraries too.
        above: At most while it ran, above that.
    """

    before: int
    above: int


def peak_of(work: Callable[[], object], device: torch.device) -> Peak | None:
    """The peak of a piece of work when it is done for the second time, so that what is set up once is not counted.

    Nothing is to be timed afterwards: on a CPU large blocks come from the system one by one from then on.

    Args:
        work: What is done, twice.
        device: Where it is done.

    Returns:
        The peak; None where the device is a CPU and the system does not tell it. Linux does.
    """
    if device.type == "cuda":
        work()
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return Peak(before, torch.cuda.max_memory_allocated(device) - before)
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    keep_no_free_blocks()
    work()
    gc.collect()
    CLEAR.write_text("5")  # from here on VmHWM is the most since now
    before = _resident("VmRSS")
    work()
    return Peak(before, _resident("VmHWM") - before)


def keep_no_free_blocks() -> None:
    """Has the C library give large blocks back to the system when they are freed, where it is one that can."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
        library.malloc_trim(0)


def _resident(field: str) -> int:
    """Bytes that a field of the process' status tells."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields[field].split()[0]) * 1024
