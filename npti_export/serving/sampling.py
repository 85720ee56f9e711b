"""How the next token of each row of a batch is chosen: by its own temperature, cut-offs and random numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

LOWEST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON does not have; the same as in vLLM."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Only the likeliest tokens that have this share of the probability together are drawn from.
        top_k: Only so many of the likeliest tokens are drawn from; 0 is all.
        repetition_penalty: Of the transformers processor of that name, over prompt and answer; 1 is none.
        seed: Decides the draws; None draws anew every time.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def draws(self, answer: int) -> random.Random:
        """The source of the random numbers of one of the answers to a request.

        >>> Sampling(seed=3).draws(0).random() == Sampling(seed=3).draws(0).random()
        True
        """
        # Not the generator of torch: a row's numbers must not depend on who else is in the batch.
        return random.Random() if self.seed is None else random.Random(f"{self.seed} {answer}")


def next_tokens(
    logits: Tensor, samplings: Sequence[Sampling], ids: Sequence[Sequence[int]], numbers: Sequence[float]
) -> list[int]:
    """Chooses a token for every row.

    Args:
        logits: The model's, [rows, vocabulary].
        samplings: One a row.
        ids: The tokens of each row so far, which a repetition penalty makes less likely.
        numbers: One random number a row, in [0, 1); a row with temperature 0 does not look at it.

    Returns:
        One token a row.

    >>> logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    >>> next_tokens(logits, [Sampling(0.0), Sampling(top_k=2)], [[0], [0]], [0.9, 0.9])
    [1, 2]
    """
    scores = logits.to(torch.float32, copy=True)  # log-probabilities are told of what was given
    for row, (sampling, before) in enumerate(zip(samplings, ids, strict=True)):
        if sampling.repetition_penalty != 1.0:
            penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            seen = torch.tensor([before], device=scores.device)
            scores[row : row + 1] = penalise(seen, scores[row : row + 1])
    tokens = scores.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0.0]
    if drawn:
        chosen = [samplings[row] for row in drawn]
        tokens[drawn] = _drawn(scores[drawn], chosen, [numbers[row] for row in drawn])
    return [int(token) for token in tokens.tolist()]


def _drawn(scores: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> Tensor:
    """Inverts the distribution function of what the cut-offs leave, the likeliest token first."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    # In float64, so that a sum over a large vocabulary does not decide which token the last one is; the largest at 0,
    # so that it stays finite however small the temperature.
    exact = scores.double()
    scaled = (exact - exact.amax(dim=-1, keepdim=True)) / column([sampling.temperature for sampling in samplings])
    ordered, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    vocabulary = scores.shape[-1]
    most = column([min(sampling.top_k or vocabulary, vocabulary) for sampling in samplings])
    ranks = torch.arange(vocabulary, device=scores.device)
    kept = (before < column([sampling.top_p for sampling in samplings])) & (ranks < most)
    kept[:, 0] = True
    reached = (ordered * kept).cumsum(dim=-1)
    wanted = column(list(numbers)) * reached[:, -1:]
    last = kept.sum(dim=-1, keepdim=True) - 1
    at = torch.minimum(torch.searchsorted(reached, wanted, right=True), last)
    return order.gather(1, at)[:, 0]


@dataclass(frozen=True)
class TokenLogprobs:
    """The model's log-probability of a token and of the likeliest ones in its place, unsampled, in nats.

    Args:
        token: What was chosen.
        logprob: Its log-probability.
        top: The likeliest tokens with theirs, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, top: int) -> TokenLogprobs:
    """The log-probabilities that a request asked for; temperature and penalties do not enter.

    Args:
        logits: Of one row, [vocabulary].
        token: What was chosen.
        top: How many of the likeliest tokens.

    >>> token_logprobs(torch.zeros(4), token=2, top=0)
    TokenLogprobs(token=2, logprob=-1.386..., top=())
    """
    logprobs = logits.float().log_softmax(dim=-1).nan_to_num(nan=LOWEST, neginf=LOWEST)
    values, tokens = logprobs.topk(top)
    likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
    return TokenLogprobs(token, float(logprobs[token]), tuple((int(at), float(value)) for at, value in likeliest))
