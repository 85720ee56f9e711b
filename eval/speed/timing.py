"""How fast a model decodes and reads, ways of steering it in turn, so that what else the machine does hits all alike.

Nothing of npti_export is imported here: peers.py uses it in an environment of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

PLAIN, AGAIN = "unsteered", "unsteered again"
"""The second is measured as a way of its own: how far it is from the first says what a difference is worth."""
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """One way in one case.

    Args:
        mode: ``eager``, or ``compiled`` with what torch.compile was told.
        case: What is run, such as ``decode, batch 8``.
        way: How it is steered.
        tokens_per_second: Median over the rounds.
        ratio: Median over the rounds of the speed by that of both unsteered runs of the round; for ``unsteered
            again`` by that of the first.
        low: Lower end of the median's 95 % interval, by bootstrap over the rounds.
        high: Upper end.
    """

    mode: str
    case: str
    way: str
    tokens_per_second: float
    ratio: float
    low: float
    high: float


class Clock(StoppingCriteria):
    """Notes when every token was there; never stops anything."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        self.times.append(now(ids.device))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def now(device: torch.device) -> float:
    """Seconds, when all that was begun on the device is done; on one thread of a CPU those that this process had."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def decoding(generate: Callable[..., Any], ids: Tensor, tokens: int, **ways: Any) -> float:
    """Tokens a second of greedy decoding; the prompt and the first token are not counted.

    Args:
        generate: The model's.
        ids: The prompts, int64 [rows, tokens].
        tokens: How many are made for each row.
        ways: More arguments.
    """
    clock = Clock()
    generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
        **ways,
    )
    return len(ids) * (tokens - 1) / (clock.times[-1] - clock.times[0])


@torch.no_grad()
def reading(model: Callable[..., Any], ids: Tensor) -> float:
    """Tokens a second of one forward over prompts, int64 [rows, tokens]."""
    began = now(ids.device)
    model(input_ids=ids, use_cache=False)
    return ids.numel() / (now(ids.device) - began)


def in_turn(mode: str, case: str, ways: Mapping[str, Callable[[], float]], seconds: float) -> list[Speed]:
    """Measures all ways once a round, every round beginning with another one.

    Before that all are run twice, which does not count: what torch.compile made for the first call it may make again
    for the second, with sizes that vary.

    Args:
        mode: As in :class:`Speed`.
        case: As there.
        ways: Name and measurement; the unsteered model's is among them and is done twice a round.
        seconds: How long rounds go on; there are at least five.
    """
    measured = {PLAIN: ways[PLAIN], AGAIN: ways[PLAIN], **ways}
    for measure in [*measured.values()] * 2:
        measure()
    speeds: dict[str, list[float]] = {name: [] for name in measured}
    began = time.perf_counter()
    while len(speeds[PLAIN]) < FEWEST_ROUNDS or time.perf_counter() - began < seconds:
        first = len(speeds[PLAIN]) % len(measured)
        order = list(measured)
        for name in order[first:] + order[:first]:
            speeds[name].append(measured[name]())
    plain, again = np.array(speeds[PLAIN]), np.array(speeds[AGAIN])
    drawn = np.random.default_rng(0).integers(len(plain), size=(2000, len(plain)))
    result = []
    for name, values in speeds.items():
        of = plain if name == AGAIN else (plain + again) / 2
        ratios = np.array(values) / of
        low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5)).tolist()
        result.append(Speed(mode, case, name, float(np.median(values)), float(np.median(ratios)), low, high))
    return result


def as_data(speeds: list[Speed]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(speed) for speed in speeds]
