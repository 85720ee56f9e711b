"""A reasoning model's thinking: the two marks around it, and which tokens of a sequence lie between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from npti_export.errors import NptiError

MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)
"""As chat templates write them: DeepSeek-R1, Qwen 3, SmolLM3 and most others; Magistral; Command A; Seed-OSS."""


@dataclass(frozen=True)
class Thinking:
    """The marks of a reasoning model.

    Args:
        begin: Token that opens the thinking.
        end: Token that ends it.
    """

    begin: int
    end: int

    @classmethod
    def between(cls, tokenizer: PreTrainedTokenizerBase, begin: str, end: str) -> Thinking:
        """Marks by their names.

        Args:
            tokenizer: The model's tokenizer.
            begin: Such as ``<think>``.
            end: Such as ``</think>``.

        Raises:
            NptiError: If one of them is no single token.
        """
        tokens = [_token(tokenizer, mark) for mark in (begin, end)]
        for mark, token in zip((begin, end), tokens, strict=True):
            if token is None:
                raise NptiError(
                    f"The mark {mark!r} is no token of {tokenizer.name_or_path or 'the tokenizer'}, so the end of "
                    "thinking cannot be told; name the marks that the model writes."
                )
        return cls(*(token for token in tokens if token is not None))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Thinking | None:
        """Those of :data:`MARKS` that the chat template mentions and that are single tokens; None where none are."""
        template = str(tokenizer.chat_template)
        for marks in MARKS:
            if marks[1] in template:
                begin, end = (_token(tokenizer, mark) for mark in marks)
                if begin is not None and end is not None:
                    return cls(begin, end)
        return None

    def covers(self, ids: Tensor) -> Tensor:
        """Whether each token is thinking: the last mark up to and with it is one that opens.

        So the opening mark is thinking and the closing mark is not; where there is none of them, nothing is. A prompt
        may open the thinking (DeepSeek-R1) or hold an empty one (Qwen 3 told not to think).

        Args:
            ids: Token ids, int64 [rows, tokens], from the beginning of the conversation.

        Returns:
            bool [rows, tokens].

        >>> Thinking(begin=8, end=9).covers(torch.tensor([[1, 8, 2, 9, 3]])).tolist()
        [[False, True, True, False, False]]
        """
        if not ids.shape[1]:
            return torch.zeros_like(ids, dtype=torch.bool)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        marked = torch.where((ids == self.begin) | (ids == self.end), places, 0)
        return ids.gather(1, marked.cummax(dim=1).values) == self.begin


def _token(tokenizer: PreTrainedTokenizerBase, mark: str) -> int | None:
    """The one token that a mark is; a tokenizer gives the unknown token, or None, for what it does not have."""
    token = tokenizer.convert_tokens_to_ids(mark)
    return token if isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == mark else None
