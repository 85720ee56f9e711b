"""What judging costs is estimated, told, and kept within the budget."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from npti_export.errors import NptiError
from npti_export.evaluation.judges.cost import PRICES, Budget, Cost, cost_ahead, price, tokens_in


def test_prices_are_those_of_a_million_tokens() -> None:
    assert price("gpt-4o-2024-08-06", 3, 2_000_000, 100_000) == Cost(3, 2_000_000, 100_000, 2 * 2.5 + 1.0)
    assert price("gpt-4o-2024-05-13", 1, 1_000_000, 0).dollars == 5.0
    assert price("gpt-4o-mini-2024-07-18", 1, 0, 1_000_000).dollars == 0.6
    assert price("gpt-4o-audio", 1, 1, 1).dollars is None
    assert price("qwen", 1, 1, 1).dollars is None
    assert all(read < written for read, written in PRICES.values())


def test_costs_add_up_and_an_unknown_price_stays_unknown() -> None:
    one, two = Cost(1, 10, 2, 0.5), Cost(2, 30, 4, 1.0)
    assert one + two == Cost(3, 40, 6, 1.5)
    assert two * 3 == Cost(6, 90, 12, 3.0)
    assert (one + Cost(1, 1, 1, None)).dollars is None
    assert (Cost(1, 1, 1, None) * 2).dollars is None
    assert one + Cost() == one
    assert str(Cost(1200, 800_000, 96_000, 2.96)) == (
        "1,200 calls, about 800,000 tokens read and 96,000 written, about $2.96"
    )
    assert str(Cost(1, 2, 3, None)).endswith("no price known")


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("How are you?", 3), ("你好", 2), ("\ud800", 1)])
def test_tokens_are_a_quarter_of_the_bytes(text: str, tokens: int) -> None:
    assert tokens_in(text) == tokens


class PerCharacter:
    """Costs a token a character of the answers."""

    def cost(self, questions: Sequence[str], answers: Sequence[str]) -> Cost:
        assert len(questions) == len(answers)
        return Cost(len(questions), sum(map(len, answers)), 0, 0.25 * len(questions))


def test_the_cost_ahead_takes_answers_for_their_longest() -> None:
    judges = [PerCharacter(), object(), PerCharacter()]  # the one between is free
    assert cost_ahead(judges, ["Q?", "R?"], 10) == Cost(40, 40 * 1600, 0, 10.0)
    assert cost_ahead([object()], ["Q?"], 10) == Cost()


def test_a_budget_is_told_before_it_is_spent_and_not_overdrawn() -> None:
    told: list[str] = []
    budget = Budget(1.0, told.append)
    budget.check("All", Cost(3, 1, 1, 0.9))
    budget.take("One", Cost(1, 1, 1, 0.7))
    assert told == [
        "All: 3 calls, about 1 tokens read and 1 written, about $0.90.",
        "One: 1 calls, about 1 tokens read and 1 written, about $0.70.",
    ]
    with pytest.raises(NptiError, match=r"^Two: about \$0\.40 beside the \$0\.70 of before is more than --max-cost 1 "):
        budget.take("Two", Cost(1, 1, 1, 0.4))
    budget.take("Three", Cost(1, 1, 1, 0.3))
    budget.take("Nothing", Cost())
    assert len(told) == 4


def test_without_a_limit_named_ten_dollars_may_be_spent_where_a_price_is_known() -> None:
    Budget().check("All", Cost(1, 1, 1, 10.0))
    Budget().check("All", Cost(1_000_000, 1, 1, None))
    with pytest.raises(NptiError, match=r"about \$10\.01 is more than --max-cost 10 allows; raise it, ask fewer"):
        Budget().check("All", Cost(1, 1, 1, 10.01))
    with pytest.raises(NptiError, match=r"no price is known for 5 calls, so --max-cost cannot be kept"):
        Budget(1.0).check("All", Cost(5, 1, 1, None))
