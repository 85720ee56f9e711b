"""The steered model as lm-eval wants it, and the tasks that it is asked; the one file that needs lm-eval."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.evaluation.likelihood import continuation_likelihoods
from npti_export.identification.answers import context_length
from npti_export.steering.personality import Personality

VERSION = version("lm-eval")


class SteeredLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model of transformers, but that it says where a prompt ends when it scores what follows.

    lm-eval scores several continuations of one text in one forward, even where their prompts end at different tokens;
    under steering these are different forwards.

    Args:
        model: The model, which carries the personality.
        tokenizer: Its tokenizer; a copy is used, because lm-eval sets a padding token.
        personality: The personality; whatever is in force when a task runs is measured.
        batch_size: Rows worked on at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        personality: Personality,
        batch_size: int,
    ) -> None:
        own = copy.deepcopy(tokenizer)
        super().__init__(pretrained=model, tokenizer=own, batch_size=batch_size, max_length=context_length(model))
        self._personality = personality

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in lm-eval, without its progress bar."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """As in lm-eval, without its progress bar."""
        return list(super().loglikelihood_rolling(requests, disable_tqdm=True))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As in lm-eval, without its progress bar."""
        return list(super().generate_until(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        prompts = [prompt for _, prompt, _ in requests]
        continuations = [continuation for _, _, continuation in requests]
        batch_size = override_bs or int(self.batch_size)
        scored = continuation_likelihoods(self._model, prompts, continuations, self._personality, batch_size)
        return [(one.log_probability, one.greedy) for one in scored]


class LoadedTasks:
    """Tasks of lm-eval, found before anything is measured.

    Args:
        tasks: Names that lm-eval knows, or paths of task files.
        limit: Only the first so many documents of each; None for all.

    Raises:
        NptiError: If one is not known.
    """

    def __init__(self, tasks: Sequence[str], limit: int | None) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._limit = limit
        # Its own tasks are thousands of files; they are read only where one of them is asked for.
        self._manager = TaskManager(include_defaults=not all(Path(task).suffix in (".yaml", ".yml") for task in tasks))
        self._tasks = [str(Path(task).resolve()) if Path(task).is_file() else task for task in tasks]
        try:
            loaded = [self._manager.load([task]) for task in self._tasks]
        except Exception as error:  # whatever a task file or a download may raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NptiError(f"The tasks {', '.join(tasks)} cannot be loaded by lm-eval ({reason}).") from None
        self.names = [name for of_task in loaded for name in _outermost(of_task)]

    def evaluate(self, model: SteeredLM) -> dict[str, Any]:
        """Runs them; what lm-eval returns, with the scores of each document."""
        # Its bars cannot be turned off. Its bootstrap (none is 0) takes minutes and is of no use to us.
        with redirect_stderr(io.StringIO()):
            results = simple_evaluate(
                model=model,
                tasks=list(self._tasks),
                task_manager=self._manager,
                limit=self._limit,
                log_samples=True,
                bootstrap_iters=0,
            )
        return dict(results or {})


def _outermost(loaded: dict[str, Any]) -> list[str]:
    """The groups that were loaded and stand in no other, or the tasks where there is none."""
    return list(loaded["groups"])[:1] or list(loaded["tasks"])
