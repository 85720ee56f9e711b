"""How tokens are drawn: shares against the distribution that was asked for, seeds, penalties, log-probabilities."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from npti_export.serving.sampling import Sampling, next_tokens, token_logprobs

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0, 2.5]])


def shares(sampling: Sampling, draws: int = 20_000) -> list[float]:
    source = random.Random(0)
    rows = LOGITS.expand(draws, -1)
    numbers = [source.random() for _ in range(draws)]
    counts = Counter(next_tokens(rows, [sampling] * draws, [[0]] * draws, numbers))
    return [counts[token] / draws for token in range(LOGITS.shape[1])]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(temperature=0.5), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [1, 4]),
        (Sampling(top_p=0.5), [1, 4]),  # the likeliest has .46, so that a second one is needed
        (Sampling(top_p=0.4), [1]),
        (Sampling(top_k=1), [1]),
        (Sampling(temperature=2.0, top_k=3, top_p=0.99), [1, 2, 4]),
    ],
)
def test_tokens_come_as_often_as_the_parameters_ask(sampling: Sampling, kept: list[int]) -> None:
    expected = (LOGITS[0].double() / sampling.temperature).exp()
    expected[[token for token in range(5) if token not in kept]] = 0.0
    expected /= expected.sum()
    assert shares(sampling) == pytest.approx(expected.tolist(), abs=0.015)


def test_a_temperature_may_be_as_small_as_numbers_are() -> None:
    for temperature in (1e-300, 1e-310, 5e-324):
        assert next_tokens(LOGITS, [Sampling(temperature)], [[0]], [0.999]) == [1]


def test_every_row_goes_by_its_own_parameters_and_numbers() -> None:
    samplings = [Sampling(0.0), Sampling(top_k=1), Sampling(), Sampling()]
    assert next_tokens(LOGITS.expand(4, -1), samplings, [[0]] * 4, [0.9, 0.9, 0.0, 0.9999]) == [1, 1, 1, 3]


def test_the_largest_number_draws_a_token_that_is_kept() -> None:
    last = 1.0 - 2.0**-53
    assert next_tokens(LOGITS, [Sampling(top_k=2)], [[0]], [last]) == [4]
    even = torch.zeros(1, 50_000)
    assert 0 <= next_tokens(even, [Sampling()], [[0]], [last])[0] < 50_000


def test_a_repetition_penalty_is_that_of_transformers_and_of_its_row_alone() -> None:
    before = [[1, 1, 4], [1]]
    samplings = [Sampling(0.0, repetition_penalty=1.6), Sampling(0.0)]
    expected = RepetitionPenaltyLogitsProcessor(1.6)(torch.tensor(before[:1]), LOGITS.clone()).argmax()
    given = LOGITS.repeat(2, 1)
    assert next_tokens(given, samplings, before, [0.0, 0.0]) == [int(expected), 1]
    assert torch.equal(given, LOGITS.repeat(2, 1))
    assert int(expected) == 2


def test_a_seed_repeats_and_answers_to_one_request_differ() -> None:
    def numbers(sampling: Sampling, answer: int) -> list[float]:
        source = sampling.draws(answer)
        return [source.random() for _ in range(5)]

    assert numbers(Sampling(seed=1), 0) == numbers(Sampling(seed=1), 0)
    assert numbers(Sampling(seed=1), 0) != numbers(Sampling(seed=1), 1)
    assert numbers(Sampling(), 0) != numbers(Sampling(), 0)


def test_log_probabilities_are_those_of_the_model() -> None:
    told = token_logprobs(LOGITS[0], token=2, top=3)
    expected = LOGITS[0].double().log_softmax(-1)
    assert told.logprob == pytest.approx(float(expected[2]), abs=1e-6)
    assert [token for token, _ in told.top] == [1, 4, 2]
    assert [logprob for _, logprob in told.top] == pytest.approx(expected[[1, 4, 2]].tolist(), abs=1e-6)


def test_a_log_probability_is_a_number_whatever_the_model_says() -> None:
    told = token_logprobs(torch.tensor([0.0, -torch.inf]), token=1, top=2)
    assert (told.logprob, told.top) == (-9999.0, ((0, 0.0), (1, -9999.0)))
    assert token_logprobs(torch.full((3,), torch.nan), token=0, top=0).logprob == -9999.0
