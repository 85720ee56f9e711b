"""Rows of the tables for the personalities of a step, and the row of every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npti_export.errors import NptiError
from npti_export.serving.personalities import RequestSteering
from npti_export.serving.slots import PersonalitySlots, TokenSlots
from npti_export.traits import PersonalitySpec


def spec(strength: float) -> PersonalitySpec:
    return PersonalitySpec.parse({"openness": strength})


def test_a_personality_keeps_its_row_and_the_longest_unused_makes_room() -> None:
    written: list[tuple[int, str]] = []
    slots = PersonalitySlots(4, lambda slot, spec: written.append((slot, str(spec))))
    assert slots.take([spec(1), spec(2)]) == [1, 2]
    assert slots.take([spec(2), spec(3), spec(2)]) == [2, 3, 2]
    assert slots.take([spec(4), spec(2)]) == [1, 2]  # 1 was used longest ago
    assert slots.take([spec(1)]) == [3]
    assert written == [(1, "openness+"), (2, "openness+2"), (3, "openness+3"), (1, "openness+4"), (3, "openness+")]


def test_a_personality_of_this_step_never_makes_room_for_another() -> None:
    held: dict[int, str] = {}
    slots = PersonalitySlots(9, lambda slot, spec: held.update({slot: str(spec)}))
    random = np.random.default_rng(0)
    for _ in range(300):
        specs = [spec(float(n)) for n in random.integers(1, 30, size=8)]
        taken = slots.take(specs)
        assert [held[slot] for slot in taken] == [str(each) for each in specs]


def test_more_personalities_than_rows_are_refused() -> None:
    slots = PersonalitySlots(3, lambda slot, spec: None)
    with pytest.raises(NptiError, match="asks for 3 personalities"):
        slots.take([spec(1), spec(2), spec(3)])


def batch(*requests: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a step of requests, each (tokens computed before, tokens now), as vLLM lays them out."""
    request_of_token = [row for row, (_, now) in enumerate(requests) for _ in range(now)]
    positions = [before + n for before, now in requests for n in range(now)]
    return torch.tensor(request_of_token), torch.tensor(positions)


def test_a_mixed_step_gives_every_token_its_row() -> None:
    """A prompt's chunk, a decoding request, an unsteered one, one that is steered everywhere, one with drafts."""
    filled: dict[int, PersonalitySpec] = {}
    slots = PersonalitySlots(8, lambda slot, spec: filled.update({slot: spec}))
    tokens = TokenSlots(32, "cpu")
    steerings = [
        RequestSteering(spec(1), 6),  # tokens 4 to 7 of a prompt of 6, as when it is preempted and computed anew
        RequestSteering(spec(2), 5),  # decodes token 9
        None,
        RequestSteering(spec(1), 0),
        RequestSteering(spec(3), 9),  # tokens 9 to 11, drafts included
        RequestSteering(spec(2), 100),  # still reading its prompt
    ]
    tokens.write(steerings, slots, *batch((4, 4), (9, 1), (0, 3), (0, 2), (9, 3), (2, 2)))
    assert {slot: each.terms[0].strength for slot, each in filled.items()} == {1: 1.0, 2: 2.0, 3: 3.0}
    assert tokens.buffer.tolist() == [0, 0, 1, 1, 2, 0, 0, 0, 1, 1, 3, 3, 3, 0, 0] + [0] * 17


def test_what_a_longer_step_left_is_neutral_and_the_buffer_stays_where_it_is() -> None:
    slots = PersonalitySlots(4, lambda slot, spec: None)
    tokens = TokenSlots(16, "cpu")
    address = tokens.buffer.data_ptr()
    tokens.write([RequestSteering(spec(1), 0)], slots, *batch((0, 16)))
    assert tokens.buffer.tolist() == [1] * 16
    tokens.write([RequestSteering(spec(1), 16)], slots, *batch((16, 1)))
    assert tokens.buffer.tolist() == [1] + [0] * 15
    tokens.write([None, None], slots, *batch((16, 1), (0, 3)))
    assert tokens.buffer.tolist() == [0] * 16
    assert tokens.buffer.data_ptr() == address


def test_steps_in_inference_mode_write_the_same_buffer() -> None:
    slots = PersonalitySlots(4, lambda slot, spec: None)
    with torch.inference_mode():
        tokens = TokenSlots(8, "cpu")
        tokens.write([RequestSteering(spec(1), 0)], slots, *batch((0, 2)))
    tokens.write([None], slots, *batch((2, 1)))
    assert tokens.buffer.tolist() == [0] * 8
