"""Which tokens of a forward are steered: decided from what `generate` recorded, never guessed from a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from npti_export.errors import NptiError
from npti_export.steering.thinking import Thinking


class Positions(StrEnum):
    """Which tokens are steered."""

    GENERATED = "generated"
    """Tokens that the model itself wrote in the running ``generate`` call."""
    LAST_PROMPT = "last_prompt+generated"
    """These and the prompt's last token, so that the first generated token is steered too."""
    ANSWER = "answer"
    """Generated tokens but those of a reasoning model's thinking; the mark that ends it belongs to the answer."""
    ALL = "all"
    """Every token."""

    @classmethod
    def named(cls, name: str) -> Positions:
        """The mode of that name.

        Raises:
            NptiError: If there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise NptiError(f"positions is {name!r}; expected one of {', '.join(cls)}.") from None


@dataclass(frozen=True)
class GenerateCall:
    """A running ``generate`` call.

    Args:
        rows: Number of prompts.
        prompt_length: Number of tokens that every row was given, those in a cache included.
        unseen: How many of them, from the first one on, were given as embeddings or in a cache and not as ids.
    """

    rows: int
    prompt_length: int
    unseen: int = 0


def generate_call_of(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> GenerateCall | None:
    """What the arguments of a ``generate`` call say; None where they are not the tensors of a transformers model.

    >>> generate_call_of((torch.zeros(2, 5),), {})
    GenerateCall(rows=2, prompt_length=5, unseen=0)
    """
    given_as = (*arguments[:1], keywords.get("inputs"), keywords.get("input_ids"))
    ids = next((ids for ids in given_as if ids is not None), None)
    given = keywords.get("inputs_embeds")
    embedded = given is not None
    if not embedded:
        given = ids
    if given is None:
        return GenerateCall(1, 1)  # generate starts from the begin-of-text token
    if not isinstance(given, Tensor) or given.ndim < 2:
        return None
    rows, length = int(given.shape[0]), int(given.shape[1])
    cache, mask = keywords.get("past_key_values"), keywords.get("attention_mask")
    # With a cache the input is the whole sequence, or only what is new; then the mask is longer than it.
    if cache is not None and mask is not None and not embedded and mask.shape[1] != length:
        length += int(cache.get_seq_length())
    seen = int(ids.shape[1]) if isinstance(ids, Tensor) else 0
    length = max(length, 1)
    return GenerateCall(rows, length, length - (seen if embedded else max(seen, 1)))


def first_steered(positions: Positions, call: GenerateCall | None) -> int | None:
    """Index in the sequence of the first steered token; None where nothing is."""
    if positions is Positions.ALL:
        return 0
    if call is None:
        return None
    return call.prompt_length - (positions is Positions.LAST_PROMPT)


def check_rows(personalities: int, rows: int, call: GenerateCall | None) -> None:
    """Refuses a batch whose rows cannot be told apart: one personality for all, or exactly one a row.

    Args:
        personalities: How many were set.
        rows: Rows of the forward.
        call: The running ``generate``, which may repeat each of its rows (beams, return sequences).
    """
    batch = rows if call is None else call.rows
    if personalities not in (1, batch) or rows % batch:
        raise NptiError(
            f"The batch has {batch} rows but {personalities} personalities were set; give one, or one a row."
        )


def check_place(ids: Tensor | None, call: GenerateCall, first: int, length: int) -> None:
    """Refuses a forward within ``generate`` whose tokens are not those that ``generate`` has in hand.

    A prompt may be read in pieces; behind it the forward must end where the sequence does. It does not where something
    runs the model on a sequence of its own (guidance with a negative prompt) or puts tokens before it (prompt tuning).

    Args:
        ids: The ids that it has in hand, int64 [rows, tokens]: those given and those generated; None in its first
            forward where it does not show them, which reads the prompt.
        call: The running ``generate``.
        first: Index in the sequence of the forward's first token.
        length: Its number of tokens.

    Raises:
        NptiError: If the tokens are others, so that it cannot be told which of them were generated.
    """
    in_hand = call.prompt_length if ids is None else int(ids.shape[1]) + call.unseen
    ends = first + length
    if ends != in_hand and max(ends, in_hand) > call.prompt_length:
        raise NptiError(
            f"A forward within generate ends at token {ends} of its sequence and generate is at token {in_hand}, so it "
            "cannot be told which tokens were generated (is it guidance_scale, prompt tuning or a processor that runs "
            "the model?); load with positions='all', or disable() the personality there."
        )


def forward_span(given: Mapping[str, Any]) -> tuple[int, int, int]:
    """What one forward gets: number of rows, index in the sequence of its first token, number of tokens.

    Args:
        given: The forward's arguments by name.
    """
    tokens = given.get("input_ids")
    if tokens is None:
        tokens = given.get("inputs_embeds")
    if tokens is None:
        raise NptiError(
            f"A forward got neither input_ids nor inputs_embeds (but {', '.join(given) or 'nothing'}), so its tokens "
            "cannot be told; pass one of them, or disable() the personality."
        )
    cache = given.get("past_key_values")
    first = 0 if cache is None else int(cache.get_seq_length())
    return int(tokens.shape[0]), first, int(tokens.shape[1])


TokenSlots = int | Tensor
"""The slot of every token of a forward: one for all of them, or int64 [rows or 1, tokens or 1]; [rows · tokens] where
an activation runs on flattened rows."""


def answer_slots(
    slots: TokenSlots, thinking: Thinking, call: GenerateCall, ids: Tensor | None, first: int, length: int
) -> Tensor:
    """Slot 0 for the tokens of a forward that are thinking.

    Args:
        slots: What :func:`token_slots` gave.
        thinking: The marks around it.
        call: The running ``generate``.
        ids: The ids that it has in hand for this forward, int64 [rows, tokens]: those given and those generated.
        first: Index in the sequence of the forward's first token.
        length: Its number of tokens.

    Returns:
        int64 [rows, tokens].

    Raises:
        NptiError: If the ids are not those of the tokens, so that thinking cannot be told from answer.
    """
    if ids is None or ids.shape[1] + call.unseen != first + length or call.unseen == call.prompt_length:
        raise NptiError(
            "positions 'answer' needs the ids of the prompt and of every token, which this way of generating does not "
            "show; give generate input_ids, or use positions='generated'."
        )
    covered = thinking.covers(ids)[:, -length:]
    if isinstance(slots, Tensor):
        covered = covered.to(slots.device)
    return slots * ~covered


@dataclass(frozen=True)
class TokenSteering:
    """How the running forward is steered.

    Args:
        slots: Which slot each token has.
        dropout: Share of shifts that are dropped at random (0.1 in the published scripts).
    """

    slots: TokenSlots
    dropout: float

    def flattened(self, rows: int, tokens: int) -> TokenSteering:
        """The same for activations that run on flattened rows, [rows · tokens, width]."""
        if not isinstance(self.slots, Tensor):
            return self
        return TokenSteering(self.slots.expand(rows, tokens).flatten(), self.dropout)


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


def scored_slots(
    row_slots: list[int],
    prompt_lengths: Sequence[int],
    positions: Positions,
    rows: int,
    first: int,
    length: int,
    device: Any,
) -> Tensor:
    """Gives every token of a plain forward its slot where each row is a prompt with a continuation that is scored.

    The continuation counts as generated, and the prompt's last token, which its first one is predicted from, is
    steered too: a continuation of one token would not be steered at all else.

    Args:
        row_slots: One slot for all rows, or one a row.
        prompt_lengths: Number of tokens of each row's prompt; rows are filled up on the right.
        positions: ``all`` steers the prompt too; every other mode steers as said above.
        rows: Rows of this forward.
        first: Index in the sequence of the forward's first token.
        length: Its number of tokens.
        device: Where the tensor is made.

    Returns:
        int64 [rows, tokens].

    Raises:
        NptiError: If there are not as many prompts as rows.

    >>> scored_slots([2], [1, 3], Positions.GENERATED, rows=2, first=0, length=4, device="cpu")
    tensor([[2, 2, 2, 2],
            [0, 0, 2, 2]])
    """
    if len(prompt_lengths) != rows:
        raise NptiError(f"The lengths of {len(prompt_lengths)} prompts were given and the batch has {rows} rows.")
    starts = torch.tensor(prompt_lengths, device=device) - 1
    steered = torch.arange(first, first + length, device=device) >= starts[:, None]
    if positions is Positions.ALL:
        steered = torch.ones_like(steered)
    return torch.tensor(row_slots, device=device)[:, None] * steered
