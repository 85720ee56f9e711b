"""What judges cost: calls, tokens and a price, estimated before anything is asked, and the most that may be spent.

Tokens are estimated as a quarter of the text's UTF-8 bytes, which for English is a little more than GPT-4o's tokenizer
makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from npti_export.errors import NptiError

PRICES = {
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-2024-05-13": (5.0, 15.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
}
"""US dollars for a million tokens read and written, as OpenAI published them in 2025; a snapshot costs what its model
costs, but for the one named."""

MAX_COST = 10.0
"""US dollars that may be spent where the user names no other sum."""

BYTES_A_TOKEN = 4
ANSWER_TOKENS = 400
"""The longest answer of an evaluation; what answers are taken for before they are there."""

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class Cost:
    """What some judgements cost, estimated.

    Args:
        calls: Requests.
        prompt_tokens: Tokens that the judge reads.
        reply_tokens: Tokens that it writes.
        dollars: The price in US dollars; None where no price is known.
    """

    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    dollars: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        known = self.dollars is not None and other.dollars is not None
        return Cost(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
            (self.dollars or 0.0) + (other.dollars or 0.0) if known else None,
        )

    def __mul__(self, times: int) -> Cost:
        dollars = None if self.dollars is None else self.dollars * times
        return Cost(self.calls * times, self.prompt_tokens * times, self.reply_tokens * times, dollars)

    def __str__(self) -> str:
        price = "no price known" if self.dollars is None else f"about ${self.dollars:.2f}"
        return (
            f"{self.calls:,} calls, about {self.prompt_tokens:,} tokens read and {self.reply_tokens:,} written, {price}"
        )


@runtime_checkable
class Priced(Protocol):
    """A judge that costs something, and knows what."""

    def cost(self, questions: Sequence[str], answers: Sequence[str]) -> Cost:
        """What it would cost to judge these answers."""


class Budget:
    """The most that the judges of one run may cost, and what they have taken of it.

    Args:
        max_cost: US dollars; None is ``MAX_COST``, and where no price is known no limit.
        tell: Told each estimate, before anything is asked.
    """

    def __init__(self, max_cost: float | None = None, tell: Callable[[str], None] = lambda message: None) -> None:
        self._max_cost = max_cost
        self._tell = tell
        self._taken = 0.0

    def check(self, what: str, cost: Cost) -> None:
        """Tells what something would cost, and takes nothing of the budget.

        Args:
            what: Whose cost it is, for the message.
            cost: The estimate.

        Raises:
            NptiError: If that is above what is left, or a limit was named and no price is known.

        >>> Budget(max_cost=1.0, tell=print).check("Judging", price("gpt-4o", 100, 70_000, 8_000))
        Judging: 100 calls, about 70,000 tokens read and 8,000 written, about $0.26.
        """
        if not cost.calls:
            return
        self._tell(f"{what}: {cost}.")
        if cost.dollars is None:
            if self._max_cost is not None:
                raise NptiError(
                    f"{what}: no price is known for {cost.calls:,} calls, so --max-cost cannot be kept; leave it out, "
                    f"or use a model of known price ({', '.join(PRICES)})."
                )
            return
        limit = MAX_COST if self._max_cost is None else self._max_cost
        if self._taken + cost.dollars > limit:
            already = f" beside the ${self._taken:.2f} of before" if self._taken else ""
            raise NptiError(
                f"{what}: about ${cost.dollars:.2f}{already} is more than --max-cost {limit:g} allows; raise it, ask "
                "fewer questions with --max-questions, or use --judge local."
            )

    def take(self, what: str, cost: Cost) -> None:
        """Tells what something costs that is asked now, and takes it.

        Raises:
            NptiError: As ``check``; then nothing is taken, and nothing must be asked.
        """
        self.check(what, cost)
        self._taken += cost.dollars or 0.0


def cost_ahead(judges: Sequence[object], questions: Sequence[str], answers_each: int) -> Cost:
    """What judging costs at most, before there are answers.

    Args:
        judges: All of them, a criterion each; those that are not :class:`Priced` cost nothing.
        questions: What will be asked.
        answers_each: How many answers to each question there will be.
    """
    longest = ["-" * (BYTES_A_TOKEN * ANSWER_TOKENS)] * len(questions)
    priced = (judge for judge in judges if isinstance(judge, Priced))
    return sum((judge.cost(questions, longest) * answers_each for judge in priced), Cost())


def price(model: str, calls: int, prompt_tokens: int, reply_tokens: int) -> Cost:
    """The cost of calls to a model of OpenAI.

    >>> price("gpt-4o-2024-08-06", 1, 1_000_000, 1_000_000).dollars
    12.5
    """
    each = PRICES.get(model) or PRICES.get(_DATE.sub("", model))
    dollars = None if each is None else (prompt_tokens * each[0] + reply_tokens * each[1]) / 1e6
    return Cost(calls, prompt_tokens, reply_tokens, dollars)


def tokens_in(text: str) -> int:
    """About how many tokens a text has.

    >>> tokens_in("How are you?")
    3
    """
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)
