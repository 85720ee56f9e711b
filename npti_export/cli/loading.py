"""Loads the model that a command works on, and shows progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from npti_export.errors import NptiError


def notice(message: str, quiet: bool = False) -> None:
    """One line for the person at the terminal, on stderr."""
    if not quiet:
        click.echo(message, err=True)


def load_model(name: str | None, device: str, dtype: str, quiet: bool) -> tuple[Any, Any]:
    """Loads a chat model and its tokenizer; no remote code is ever run.

    Args:
        name: Hub id or folder; None takes the bundled model and says so.
        device: ``auto``, ``cpu``, ``cuda`` …; ``all`` spreads the layers over all GPUs.
        dtype: ``auto`` or a name of torch.
        quiet: Whether to leave the notice out.

    Raises:
        NptiError: If there is no such model or device.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from npti_export.demo import DEMO_MODEL

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    _show_warnings_as_notices(quiet)
    if name is None:
        notice("Using the bundled demo model npti-demo; name a real one with --model, for example a Hub id.", quiet)
        name = str(DEMO_MODEL)
    on_gpu = torch.cuda.is_available()
    where = torch.device(("cuda" if on_gpu else "cpu") if device in ("auto", "all") else _device(device))
    if device == "all" and find_spec("accelerate") is None:
        raise NptiError("--device all needs accelerate; `pip install npti-export[large]` brings it.")
    name = os.path.expanduser(name)
    if (name.startswith((".", "/")) or name.count("/") > 1) and not Path(name).is_dir():
        raise NptiError(f"There is no model folder {name}; give a folder with a config.json, or a Hub id.")
    chosen: Any = "auto" if dtype == "auto" and where.type != "cpu" else getattr(torch, dtype, torch.float32)
    spread = {"device_map": "auto"} if device == "all" else {}
    try:
        # Without the word transformers would ask, on a terminal or of what is piped in, whether to run a model's code.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=chosen, trust_remote_code=False, **spread)
    except OSError as error:
        raise NptiError(
            f"The model {name} cannot be loaded ({_reason(error)}); give the folder or Hub id of a chat model, and log "
            "in with 'hf auth login' if it is gated or private."
        ) from None
    except (ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise NptiError(f"The model {name} cannot be loaded ({_reason(error)}).") from None
    try:
        if not spread:
            model.to(where)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise NptiError(
            f"The model {name} cannot be put on {where} ({_reason(error)}); choose another --device."
        ) from None
    return model.eval(), tokenizer


def hush_hub(quiet: bool) -> None:
    """Keeps the Hub's client from saying on stderr, over several lines, what the command says in one."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()


@contextmanager
def stage(what: str, steps: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows how far a stage is, with rate and time left; yields the function that is told of steps done."""
    if quiet:
        yield lambda _done: None
    elif sys.stderr.isatty():
        yield from _bar(what, steps)
    else:
        yield from _lines(what, steps)


def print_table(table: Any) -> None:
    """Prints a rich table; a pipe or a file has no width, and 80 columns would break every figure in two."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _bar(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=steps, rate="")

        def advance(done: int) -> None:
            progress.update(task, advance=done)
            speed = progress.tasks[task].speed
            progress.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def _lines(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    began, count, said = time.monotonic(), 0, 0

    def advance(done: int) -> None:
        nonlocal count, said
        count += done
        tenth = 10 * count // max(1, steps)
        if tenth > said and count < steps:
            said = tenth
            left = (time.monotonic() - began) / count * (steps - count)
            notice(f"{what}: {count}/{steps}, about {left:.0f} s left")

    yield advance
    notice(f"{what}: done in {time.monotonic() - began:.0f} s")


def _reason(error: Exception) -> str:
    """The first line of what went wrong, as part of a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .")


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(name)
    except RuntimeError:
        raise NptiError(f"There is no device {name!r}; cpu or cuda is expected.") from None


def _show_warnings_as_notices(quiet: bool) -> None:
    """The package's own warnings are for the user: one plain line, no file and line number."""
    logging.getLogger("npti_export").addHandler(logging.NullHandler())

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            notice(f"Note: {message}", quiet)

    warnings.showwarning = show
