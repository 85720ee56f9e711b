"""Capability: what a personality costs on benchmarks of knowledge and reasoning, by lm-eval on the steered model.

Each pole stands beside the same model unsteered, on the same documents. lm-eval is an extra, imported only when asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.intervals import Estimate, bootstrap_mean
from npti_export.steering.personality import load_personality
from npti_export.steering.thinking import Thinking

POINTS = 100.0
"""Scores of lm-eval are shares of 0 to 1; what is lost or won is said in points of a hundred."""
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task under one personality.

    Args:
        personality: A spec, or ``unsteered``.
        task: The name that was asked for; of a group, all its documents together.
        metric: lm-eval's name of it with the filter, such as ``exact_match,strict-match``.
        documents: How many.
        value: Mean over documents, 0 to 1.
        error: Its standard error; 0 for a single document.
        change: Paired difference from the unsteered model, in points; None for that model itself.
    """

    personality: str
    task: str
    metric: str
    documents: int
    value: float
    error: float
    change: Estimate | None


@dataclass(frozen=True)
class Capability:
    """All scores, the unsteered model's first.

    Args:
        scores: One a personality, task and metric.
        made_with: Name and version of what measured.
    """

    scores: tuple[TaskScore, ...]
    made_with: str

    def of(self, personality: str) -> tuple[TaskScore, ...]:
        """The scores of one personality, or of ``unsteered``."""
        return tuple(score for score in self.scores if score.personality == personality)

    def section(self) -> dict[str, Any]:
        """The section ``capability`` of an evaluation, as JSON."""
        return {"made_with": self.made_with, "scores": [asdict(score) for score in self.scores]}


def measure_capability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PersonalityAdapter,
    personalities: Sequence[str],
    tasks: Sequence[str],
    batch_size: int = 32,
    limit: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> Capability:
    """Runs tasks of lm-eval on the unsteered model and under each personality, with lm-eval's own settings.

    Multiple choice is scored with the answer counted as generated and the prompt's last token steered too; where a
    task generates, the adapter's positions hold. The unsteered run goes through the same model object with the neutral
    row in force, and gives what lm-eval gives alone.

    Args:
        model: The base model, unsteered.
        tokenizer: Its tokenizer.
        adapter: Holds the personalities.
        personalities: Specs such as ``openness+``.
        tasks: Names that lm-eval knows (tasks or groups), or paths of task files (YAML), which work offline.
        batch_size: Rows worked on at once.
        limit: Only the first so many documents of each task; None for all.
        done: Called when another personality is measured, the unsteered model first.

    Returns:
        Every metric that is a mean over documents, with its standard error; the change from unsteered with its 95 %
        interval, a paired bootstrap over documents.

    Raises:
        NptiError: If lm-eval is not installed, a task is not known or has no such metric, or a spec is wrong.
    """
    lm_eval_model = _lm_eval_model()
    specs = [str(adapter.personality(spec)) for spec in personalities]
    run = lm_eval_model.LoadedTasks(tasks, limit)
    scores: list[TaskScore] = []
    plain: dict[tuple[str, str], NDArray[np.float64]] = {}
    with load_personality(model, "neutral", adapter, thinking=Thinking.of(tokenizer)) as personality:
        steered = lm_eval_model.SteeredLM(model, tokenizer, personality, batch_size)
        for spec in (None, *specs):
            with personality.using(spec):
                results = run.evaluate(steered)
            found = {(task, metric): values for task in run.names for metric, values in by_document(results, task)}
            if spec is None:
                _check_found(run.names, found)
                plain = found
            for (task, metric), values in found.items():
                if (task, metric) not in plain:  # a mean over documents by chance, under this personality alone
                    continue
                change = None if spec is None else bootstrap_mean(POINTS * (values - plain[task, metric]))
                scores.append(_score(spec or UNSTEERED, task, metric, values, change))
            done()
    return Capability(tuple(scores), f"lm-eval {lm_eval_model.VERSION}")


def by_document(results: Mapping[str, Any], task: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The metrics of a task that are means over its documents, each with its value for every document.

    Args:
        results: What lm-eval returned, with samples.
        task: A task or a group, whose documents are taken together.

    Yields:
        Name of the metric with its filter, and its values, float64 [documents].
    """
    names: dict[str, list[NDArray[np.float64]]] = {}
    leaves = _leaves(results, task)
    for leaf in leaves:
        for metric, mean in results["results"][leaf].items():
            name, _, filtered = metric.partition(",")
            values = [_number(s.get(name)) for s in results["samples"][leaf] if s.get("filter", "none") == filtered]
            numbers = np.array([value for value in values if value is not None])
            # A correlation, perplexity and the like are no means over documents.
            if values and len(numbers) == len(values) and np.isclose(numbers.mean(), mean, atol=1e-6):
                names.setdefault(metric, []).append(numbers)
    for metric, of_leaves in names.items():
        if len(of_leaves) == len(leaves):
            yield metric, np.concatenate(of_leaves)


def _leaves(results: Mapping[str, Any], task: str) -> list[str]:
    """The tasks that a group holds, in order of their names; a task alone holds itself."""
    below = results.get("group_subtasks", {}).get(task) or []
    return sorted({leaf for name in below for leaf in _leaves(results, name)}) or [task]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) else None


def _check_found(tasks: Sequence[str], found: Mapping[tuple[str, str], object]) -> None:
    for task in tasks:
        if not any(name == task for name, _ in found):
            raise NptiError(
                f"The task {task} has no score that is a mean over documents, so a change of it has no interval; "
                "choose another with --tasks."
            )


def _score(personality: str, task: str, metric: str, values: NDArray[np.float64], change: Estimate | None) -> TaskScore:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return TaskScore(personality, task, metric, len(values), float(values.mean()), error, change)


def _lm_eval_model() -> Any:
    """The module that needs lm-eval."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise NptiError("Benchmarks need lm-eval; install it with: pip install 'npti-export[capability]'.") from None
    from npti_export.evaluation import lm_eval_model

    return lm_eval_model
