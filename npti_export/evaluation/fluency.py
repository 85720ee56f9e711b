"""Fluency: how likely answers are under the unsteered model, without persona.

An answer's NLL is the mean over its own tokens, so that answers count alike whatever their length; the end sign is one
of them where the model gave one, because ending too soon or never is a loss of fluency too. A ratio of perplexities is
exp of a mean difference of NLLs, that is the geometric mean of the answers' ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.identification.answers import Answer, Prompt, context_length, prompt_ids


def answer_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    answers: Sequence[Answer],
    batch_size: int = 32,
    personas: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each answer's tokens (its end sign included), in nats, float64 [answers].

    Args:
        model: The unsteered model.
        tokenizer: Its tokenizer.
        questions: What was asked; the persona that an answer may have been given with is left out.
        answers: The answers.
        batch_size: Rows of one forward.
        personas: One a question, to ask how likely the answers are in character; None asks without persona.
    """
    given: Sequence[str | None] = personas or [None] * len(questions)
    prompts = [
        prompt_ids(Prompt(question, persona), tokenizer) for question, persona in zip(questions, given, strict=True)
    ]
    room = context_length(model)  # a persona may leave less of it than the answer was given in
    order = sorted(range(len(answers)), key=lambda at: len(prompts[at]) + len(answers[at].token_ids))
    result = np.zeros(len(answers))
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        rows = [(prompts[at] + list(answers[at].token_ids))[:room] for at in places]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        counted = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
        for row, at in enumerate(places):
            ids[row, : len(rows[row])] = torch.tensor(rows[row])
            counted[row, len(prompts[at]) - 1 : len(rows[row]) - 1] = True
        ids, counted = ids.to(model.device), counted.to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        where = counted.nonzero()[:, 0]
        nll = F.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="none").double()
        sums = torch.zeros(len(rows), dtype=torch.float64, device=nll.device).index_add_(0, where, nll)
        result[places] = (sums / torch.bincount(where, minlength=len(rows)).clamp(min=1)).cpu().numpy()
    return result
