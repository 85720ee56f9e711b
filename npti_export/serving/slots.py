"""Which personality stands in which row of the tables, and the row of every token of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from npti_export.errors import NptiError
from npti_export.serving.personalities import RequestSteering
from npti_export.traits import PersonalitySpec


class PersonalitySlots:
    """Rows of the tables, given to the personalities of a step; the one longest unused makes room.

    Args:
        count: How many rows there are, neutral (row 0) included.
        fill: Writes a personality into a row.

    >>> slots = PersonalitySlots(3, fill=lambda slot, spec: None)
    >>> openness, calm = PersonalitySpec.parse("openness+"), PersonalitySpec.parse("neuroticism-")
    >>> slots.take([openness, calm, openness])
    [1, 2, 1]
    """

    def __init__(self, count: int, fill: Callable[[int, PersonalitySpec], None]) -> None:
        self._fill = fill
        self._empty = list(range(1, count))
        self._slot_of: dict[PersonalitySpec, int] = {}  # the longest unused first

    def take(self, specs: Sequence[PersonalitySpec]) -> list[int]:
        """The row of each of a step's personalities, none of them neutral; those that have none are written.

        Raises:
            NptiError: If there are more different ones than rows.
        """
        wanted = dict.fromkeys(specs)
        for spec in wanted:
            slot = self._slot_of.pop(spec, None)
            if slot is None:
                slot = self._room(wanted)
                self._fill(slot, spec)
            self._slot_of[spec] = slot
        return [self._slot_of[spec] for spec in specs]

    def _room(self, wanted: dict[PersonalitySpec, None]) -> int:
        if self._empty:
            return self._empty.pop(0)
        for spec in self._slot_of:
            if spec not in wanted:
                return self._slot_of.pop(spec)
        raise NptiError(f"One step asks for {len(wanted)} personalities, more than the tables hold.")


class TokenSlots:
    """The row of every token of a step, in a buffer that stays where it is, so that captured graphs read it.

    Args:
        tokens: How many tokens a step has at most, padding included.
        device: Of the model.
    """

    def __init__(self, tokens: int, device: torch.device | str) -> None:
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside it
            self.buffer = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._device = device
        self._neutral = True

    def write(
        self,
        steerings: Sequence[RequestSteering | None],
        slots: PersonalitySlots,
        request_of_token: Tensor,
        positions: Tensor,
    ) -> None:
        """Sets the rows for the next step; padding behind its tokens is neutral.

        Args:
            steerings: One a request of the step, in the order of its rows; None for one that is not steered.
            slots: Gives each personality its row of the tables.
            request_of_token: Which request each token belongs to, integers [tokens].
            positions: Index of each token in its sequence, integers [tokens].
        """
        steered = [(row, steering) for row, steering in enumerate(steerings) if steering is not None]
        if not steered:
            if not self._neutral:
                self.buffer.zero_()
                self._neutral = True
            return
        # One small copy to the device for both numbers of every request; neutral ones begin nowhere.
        slot_and_first = [[0, 0] for _ in steerings]
        for (row, steering), slot in zip(steered, slots.take([each.spec for _, each in steered]), strict=True):
            slot_and_first[row] = [slot, steering.first]
        by_request = torch.tensor(slot_and_first, dtype=torch.int64).to(self._device, non_blocking=True)
        of_token = by_request[request_of_token]
        count = len(request_of_token)
        torch.mul(of_token[:, 0], positions >= of_token[:, 1], out=self.buffer[:count])
        self.buffer[count:].zero_()
        self._neutral = False
