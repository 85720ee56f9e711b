"""How likely continuations of prompts are under a model, steered or not: what multiple choice is scored by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from npti_export.errors import NptiError
from npti_export.identification.answers import Progress, context_length
from npti_export.steering.personality import Personality


@dataclass(frozen=True)
class Likelihood:
    """How likely one continuation is.

    Args:
        log_probability: Sum over its tokens, nats.
        greedy: Whether each of its tokens is the likeliest one.
    """

    log_probability: float
    greedy: bool


def continuation_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    personality: Personality | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """Scores each continuation behind its prompt; under a personality it counts as generated.

    What the context leaves no room for is cut off the prompt's beginning, as lm-eval does. Log-probabilities are
    computed in float32.

    Args:
        model: The model.
        prompts: Token ids, at least one a row.
        continuations: Token ids, at least one a row.
        personality: Loaded into the model; None scores it as it is.
        batch_size: Rows of one forward.
        progress: Told how many more are done.

    Returns:
        One a row, in their order.

    Raises:
        NptiError: If a prompt or continuation is empty, or a continuation is longer than the context.

    >>> from transformers import AutoModelForCausalLM
    >>> from npti_export.demo import DEMO_MODEL
    >>> model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    >>> scored = continuation_likelihoods(model, [[5, 6]], [[7, 8]])
    >>> scored[0].log_probability < 0
    True
    """
    room = context_length(model)
    # What is fed is all but a row's last token: continuations of one prompt that differ only there share a forward.
    sharing: dict[tuple[tuple[int, ...], int], list[int]] = {}
    last = []
    for at, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt or not continuation or len(continuation) > room:
            raise NptiError(
                f"A continuation of {len(continuation)} tokens behind a prompt of {len(prompt)} cannot be scored; both "
                f"need a token at least, and the continuation may have {room} at most, the model's context."
            )
        *fed, token = [*prompt, *continuation][-(room + 1) :]
        sharing.setdefault((tuple(fed), len(fed) + 1 - len(continuation)), []).append(at)
        last.append(token)
    found: dict[int, Likelihood] = {}
    # The longest first: what does not fit the memory shows at once.
    order = sorted(sharing, key=lambda key: -len(key[0]))
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        for key, (before, log_probabilities) in zip(batch, _forward(model, batch, personality), strict=True):
            greedy, best = before.greedy, int(log_probabilities.argmax())
            for at in sharing[key]:
                of_last = float(log_probabilities[last[at]])
                found[at] = Likelihood(before.log_probability + of_last, greedy and best == last[at])
        if progress:
            progress(sum(len(sharing[key]) for key in batch))
    return [found[at] for at in range(len(prompts))]


def _forward(
    model: PreTrainedModel, rows: Sequence[tuple[tuple[int, ...], int]], personality: Personality | None
) -> list[tuple[Likelihood, Tensor]]:
    """One forward of rows of tokens, each with the length of its prompt.

    Returns:
        For each row the likelihood of what stands behind its prompt, and the log-probabilities of the token that comes
        next, float32 [vocabulary].
    """
    ids = torch.zeros(len(rows), max(len(fed) for fed, _ in rows), dtype=torch.int64)
    for at, (fed, _) in enumerate(rows):
        ids[at, : len(fed)] = torch.tensor(fed)
    scoring = personality.scoring([begin for _, begin in rows]) if personality else nullcontext()
    with torch.inference_mode(), scoring:
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    scored = []
    for at, (fed, begin) in enumerate(rows):
        log_probabilities = F.log_softmax(logits[at, begin - 1 : len(fed)].float(), dim=-1)
        said = torch.tensor(fed[begin:], dtype=torch.int64, device=logits.device)
        before, following = log_probabilities[:-1], log_probabilities[-1]
        greedy = bool((before.argmax(dim=-1) == said).all())
        scored.append((Likelihood(float(before.gather(1, said[:, None]).sum()), greedy), following))
    return scored
