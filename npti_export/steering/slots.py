"""Which personality each slot of the tables holds, and which of them are in use; slots are shared by all threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.steering.output import OutputPlace
from npti_export.steering.positions import Positions
from npti_export.steering.sites import Site
from npti_export.steering.tables import RoundedRow, SteeringTables, steering_rows
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec


@dataclass(frozen=True)
class Selection:
    """Personalities that are in force, with everything that a forward has to know of them.

    Args:
        specs: One for all rows, or one a row of the batch.
        slots: Where each of them stands in the tables.
        positions: Which tokens are steered.
        dropout: Share of shifts that are dropped at random.
        thinking: The marks of the thinking that is left alone; None where all that is generated is steered.
    """

    specs: tuple[PersonalitySpec, ...]
    slots: tuple[int, ...]
    positions: Positions
    dropout: float
    thinking: Thinking | None = None

    @property
    def personalities(self) -> tuple[PersonalitySpec, ...]:
        """Those that take a slot, each once."""
        return _personalities(self.specs)


class Slots:
    """The tables of all sites, and who stands in them.

    A personality that is acquired keeps its slot until it is released as often; then it stays there until the slot is
    wanted, the one longest unused first. So threads never overwrite each other's.

    Args:
        adapter: Where the personalities come from.
        sites: Where they act.
        count: How many personalities the tables hold, neutral included.
        positions: Which tokens are steered, over the adapter's own choice.
        outputs: Where the adapter's dense parts are added, by the layer's number.
        thinking: The marks of the model's thinking, needed for positions ``answer``.
    """

    def __init__(
        self,
        adapter: PersonalityAdapter,
        sites: Sequence[Site],
        count: int,
        positions: str | None,
        outputs: Mapping[int, OutputPlace] = MappingProxyType({}),
        thinking: Thinking | None = None,
    ) -> None:
        if count < 2:
            raise NptiError(f"slots is {count}; at least 2 are needed, neutral and one more.")
        # The dense part of a layer belongs to one of its tables; of a mixture's two sites the last is of the experts.
        last = {site.layer: site for site in sites}
        self.tables = [
            SteeringTables(site, count, outputs.get(site.layer) if last[site.layer] is site else None) for site in sites
        ]
        self._adapter = adapter
        self._thinking = thinking
        self._widths = [sum(site.neurons for site in sites if site.layer == layer) for layer in sorted(last)]
        self._count = count
        self._positions = None if positions is None else Positions.named(positions)
        self._empty = list(range(1, count))
        self._slot_of: dict[PersonalitySpec, int] = {}  # the longest unused first
        self._uses: Counter[PersonalitySpec] = Counter()
        self._lock = Lock()

    def acquire(self, specs: tuple[PersonalitySpec, ...], instead_of: Selection | None = None) -> Selection:
        """Gives every personality a slot, filling those that have none.

        Args:
            specs: One for all rows, or one a row.
            instead_of: Released at the same time, so that its slots may be taken.

        Raises:
            NptiError: If the slots are all in use or a personality cannot be written; nothing has changed then.
        """
        positions, dropout = self._manner(specs)
        wanted = _personalities(specs)
        with self._lock:
            uses = self._uses.copy()
            uses.subtract(instead_of.personalities if instead_of else ())
            missing = [spec for spec in wanted if spec not in self._slot_of]
            idle = [slot for spec, slot in self._slot_of.items() if not uses[spec] and spec not in wanted]
            # Those given up come last: another thread may be within a forward that reads them.
            idle.sort(key=lambda slot: instead_of is not None and slot in instead_of.slots)
            free = [*self._empty, *idle]
            if len(missing) > len(free):
                raise NptiError(
                    f"{len(missing)} more personalities were asked for and {len(free)} slots are free; load with "
                    f"slots={self._count + len(missing) - len(free)} or more."
                )
            # All are made before one is written: a refusal must not have spoilt a slot that stays in force.
            made = [self._made(spec) for spec in missing]
            for slot, spec, rows in zip(free, missing, made, strict=False):
                self._write(slot, spec, rows)
            for spec in wanted:
                self._slot_of[spec] = self._slot_of.pop(spec)
            uses.update(wanted)
            self._uses = +uses  # without those that nobody uses: a dial leaves one behind at every turn
            slots = tuple(0 if spec.is_neutral else self._slot_of[spec] for spec in specs)
        return Selection(specs, slots, positions, dropout, self._thinking if positions is Positions.ANSWER else None)

    def release(self, selection: Selection) -> None:
        """Lets the slots of a selection be taken again once nobody else uses them."""
        with self._lock:
            self._uses.subtract(selection.personalities)
            self._uses = +self._uses

    def _made(self, spec: PersonalitySpec) -> list[RoundedRow]:
        """A personality's row at every site."""
        rows = steering_rows(self._adapter, spec, self._widths)
        if not any(row.moves for row in rows):
            raise NptiError(f"The personality {str(spec)!r} would do nothing: the adapter moves no neurons for it.")
        return [tables.rounded(rows[tables.site.layer]) for tables in self.tables]

    def _write(self, slot: int, spec: PersonalitySpec, rows: list[RoundedRow]) -> None:
        self._slot_of = {held: at for held, at in self._slot_of.items() if at != slot}
        if slot not in self._empty:
            self._empty.append(slot)  # and it stays so, should what follows be interrupted
        for tables, row in zip(self.tables, rows, strict=True):
            tables.write(slot, row)
        self._empty.remove(slot)
        self._slot_of[spec] = slot

    def _manner(self, specs: tuple[PersonalitySpec, ...]) -> tuple[Positions, float]:
        """Positions and dropout, on which all terms of all rows must agree (the loader's positions come first)."""
        terms = [term for spec in specs for term in spec.terms]
        records = [self._adapter.traits[term.trait].poles[term.pole] for term in terms]
        asked = {record.positions for record in records} if self._positions is None else {self._positions}
        dropouts = {record.dropout for record in records}
        if len(asked) > 1 or len(dropouts) > 1:
            raise NptiError(
                f"{'; '.join(map(str, specs))}: the adapter's poles ask for different positions or dropout "
                f"({', '.join(sorted(asked))}; {sorted(dropouts)}); pass positions=…, or use them one at a time."
            )
        positions = Positions.named(asked.pop() if asked else "generated")
        if terms and positions is Positions.ANSWER and self._thinking is None:
            raise NptiError(
                "positions 'answer' needs the marks of the model's thinking, and none were given: load with "
                "thinking=Thinking.of(tokenizer) or Thinking.between(tokenizer, …), or with positions='generated'."
            )
        return positions, dropouts.pop() if dropouts else 0.0


def _personalities(specs: tuple[PersonalitySpec, ...]) -> tuple[PersonalitySpec, ...]:
    return tuple(spec for spec in dict.fromkeys(specs) if not spec.is_neutral)
