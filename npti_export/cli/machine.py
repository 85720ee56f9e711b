"""The model that a command of identification works on, and where it runs, as options that are one argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from npti_export.cli import loading, options
from npti_export.cli.one_argument import as_one
from npti_export.errors import NptiError


@dataclass(frozen=True)
class Machine:
    """A model and where it runs.

    Args:
        model_name: Hub id or folder; None is the bundled one.
        device: Where.
        dtype: In which precision.
        batch_size: Rows worked on at once.
        quiet: Whether nothing is said beside results.
    """

    model_name: str | None
    device: str
    dtype: str
    batch_size: int
    quiet: bool

    def load(self) -> tuple[Any, Any]:
        """Model and tokenizer, in each of the processes that share the work.

        Raises:
            NptiError: If there is no such model or device, or the other processes cannot be found.
        """
        from npti_export.identification import processes
        from npti_export.identification.questions import BLOCK_QUESTIONS

        processes.join()
        if self.device == "all" and processes.processes() > 1:
            raise NptiError(
                f"--device all spreads one model over all GPUs, which {processes.processes()} processes cannot share; "
                "start one process, or give each a GPU with --device auto."
            )
        if (rows := 2 * BLOCK_QUESTIONS // processes.processes()) < self.batch_size and processes.processes() > 1:
            loading.notice(
                f"Note: a block of {2 * BLOCK_QUESTIONS} answers makes too few batches of {self.batch_size} for "
                f"{processes.processes()} processes, some of which wait; --batch-size {max(1, rows)} gives each work.",
                self.says_nothing,
            )
        return loading.load_model(self.model_name, self.device, self.dtype, self.says_nothing)

    @property
    def says_nothing(self) -> bool:
        """Whether this process shows no progress: of several only the first one does."""
        from npti_export.identification import processes

        return self.quiet or processes.number() > 0


machine = as_one("machine", Machine, options.model, options.device, options.dtype, options.batch_size, options.quiet)
"""Model and device as options; the command gets them as one :class:`Machine`."""
