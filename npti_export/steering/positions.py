"""Which tokens of a forward are steered: decided from what `generate` recorded, never guessed from a shape."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from npti_export.errors import NptiError


class Positions(StrEnum):
    """Which tokens are steered."""

    GENERATED = "generated"
    """Tokens that the model itself wrote in the running ``generate`` call."""
    LAST_PROMPT = "last_prompt+generated"
    """These and the prompt's last token, so that the first generated token is steered too."""
    ALL = "all"
    """Every token."""

    @classmethod
    def named(cls, name: str) -> Positions:
        """The mode of that name.

        Raises:
            NptiError: If there is none, or the runtime cannot tell such positions yet.
        """
        if name == "answer":
            raise NptiError(
                "positions 'answer' (after the end of a reasoning model's thinking) is not there in this release; "
                "use 'generated'."
            )
        try:
            return cls(name)
        except ValueError:
            raise NptiError(f"positions is {name!r}; expected one of {', '.join(cls)}.") from None


@dataclass(frozen=True)
class GenerateCall:
    """A running ``generate`` call.

    Args:
        prompt_length: Number of tokens that every row was given.
    """

    prompt_length: int


def prompt_length_of(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
    """Number of tokens a ``generate`` call is given; one (the start token) where it is given none."""
    given = arguments[0] if arguments else keywords.get("inputs", keywords.get("input_ids"))
    embeddings = keywords.get("inputs_embeds")
    longest = max((int(x.shape[1]) for x in (given, embeddings) if isinstance(x, Tensor) and x.ndim > 1), default=0)
    return longest or 1


def first_steered(positions: Positions, call: GenerateCall | None) -> int | None:
    """Index in the sequence of the first steered token; None where nothing is."""
    if positions is Positions.ALL:
        return 0
    if call is None:
        return None
    return call.prompt_length - (positions is Positions.LAST_PROMPT)


def forward_span(keywords: dict[str, Any], arguments: tuple[Any, ...]) -> tuple[int, int, int]:
    """What one forward gets: number of rows, index in the sequence of its first token, number of tokens."""
    given = keywords.get("input_ids", arguments[0] if arguments else None)
    if given is None:
        given = keywords["inputs_embeds"]
    cache = keywords.get("past_key_values")
    first = 0 if cache is None else int(cache.get_seq_length())
    return int(given.shape[0]), first, int(given.shape[1])


TokenSlots = int | Tensor
"""The slot of every token of a forward: one for all of them, or int64 [rows or 1, tokens or 1]."""


@dataclass(frozen=True)
class TokenSteering:
    """How the running forward is steered.

    Args:
        slots: Which slot each token has.
        dropout: Share of shifts that are dropped at random (0.1 in the published scripts).
    """

    slots: TokenSlots
    dropout: float


def token_slots(
    row_slots: list[int], rows: int, first: int, length: int, start: int | None, device: Any
) -> TokenSlots | None:
    """Gives every token of a forward its slot.

    Args:
        row_slots: One slot for all rows, or one a row of the batch as it was given to ``generate``.
        rows: Rows of this forward, a multiple of those (beams and return sequences repeat a row).
        first: Index in the sequence of the forward's first token.
        length: Its number of tokens.
        start: Index in the sequence of the first steered token, None for none.
        device: Where a tensor is made.

    Returns:
        As few numbers as will do; None where every token is neutral, so that nothing is computed.

    >>> token_slots([2], rows=1, first=5, length=1, start=5, device="cpu")
    2
    >>> token_slots([2], rows=1, first=0, length=3, start=2, device="cpu")
    tensor([[0, 0, 2]])
    """
    if rows % len(row_slots):
        raise NptiError(
            f"The batch has {rows} rows but {len(row_slots)} personalities were set; give one, or one a row."
        )
    if start is None or first + length <= start or not any(row_slots):
        return None
    same = len(set(row_slots)) == 1
    if same and first >= start:
        return row_slots[0]
    by_row = torch.tensor(row_slots[:1] if same else row_slots, device=device)
    if not same:
        by_row = by_row.repeat_interleave(rows // len(row_slots))
    if first >= start:
        return by_row[:, None]
    steered = torch.arange(first, first + length, device=device) >= start
    return by_row[:, None] * steered[None, :]
