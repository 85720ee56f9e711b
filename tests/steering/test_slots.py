"""Slots: filled on demand, kept while in use, taken again afterwards, refused when all are in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from npti_export import PersonalitySpec
from npti_export.errors import NptiError
from npti_export.steering.sites import find_sites
from npti_export.steering.slots import Slots
from npti_export.steering.tables import steering_rows
from npti_export.traits import Pole


@pytest.fixture
def make_slots(tiny_llama, tiny_adapter):
    adapter = tiny_adapter(tiny_llama)
    return lambda count: Slots(adapter, find_sites(tiny_llama), count, None)


def specs(*texts: str) -> tuple[PersonalitySpec, ...]:
    return tuple(PersonalitySpec.parse(text) for text in texts)


def test_neutral_is_slot_0_and_equal_personalities_share_one(make_slots) -> None:
    selection = make_slots(4).acquire(specs("openness+", "neutral", "openness+1.0", "neuroticism-", "openness+0"))
    assert selection.slots == (1, 0, 1, 2, 0)
    assert selection.personalities == specs("openness+", "neuroticism-")


def test_tables_hold_the_rows_of_the_personality(make_slots) -> None:
    slots = make_slots(3)
    (at,) = slots.acquire(specs("openness+,neuroticism-0.5")).slots
    for tables, row in zip(
        slots.tables, steering_rows(slots._adapter, *specs("openness+,neuroticism-0.5"), [48] * 3), strict=True
    ):
        assert torch.equal(tables.cap[at], torch.from_numpy(row.cap).float())
        assert torch.equal(tables.shift[at], torch.from_numpy(row.shift).float())


def test_unused_slots_are_kept_and_the_longest_unused_is_taken_first(make_slots) -> None:
    slots = make_slots(3)
    for spec in specs("openness+", "neuroticism+", "openness+"):
        slots.release(slots.acquire((spec,)))
    assert slots.acquire(specs("openness-")).slots == (2,)  # neuroticism+ was there
    assert slots.acquire(specs("openness+")).slots == (1,)  # still there


def test_slots_in_use_are_never_taken(make_slots) -> None:
    slots = make_slots(3)
    held = slots.acquire(specs("openness+"))
    again = slots.acquire(specs("openness+"))
    slots.release(held)
    slots.acquire(specs("neuroticism+"))
    with pytest.raises(NptiError, match="1 more personalities were asked for and 0 slots are free; load with slots=4"):
        slots.acquire(specs("openness-"))
    slots.release(again)
    assert slots.acquire(specs("openness-")).slots == (1,)


def test_instead_of_lets_its_own_slot_be_taken(make_slots) -> None:
    slots = make_slots(2)
    first = slots.acquire(specs("openness+"))
    second = slots.acquire(specs("openness-"), instead_of=first)
    assert second.slots == first.slots
    with pytest.raises(NptiError, match="2 more personalities"):
        slots.acquire(specs("openness+", "neuroticism-"), instead_of=second)
    with pytest.raises(NptiError, match="0 slots are free"):  # a refusal has released nothing
        slots.acquire(specs("openness+"))


def test_slots_that_are_given_up_are_taken_last(make_slots) -> None:
    """Another thread may be within a forward that reads them."""
    slots = make_slots(4)
    held = slots.acquire(specs("openness+"))
    for spec in specs("openness-", "neuroticism+"):
        slots.release(slots.acquire((spec,)))
    assert slots.acquire(specs("neuroticism-"), instead_of=held).slots == (2,)


def test_nothing_is_kept_of_personalities_that_are_gone(make_slots) -> None:
    slots, held = make_slots(3), None
    for turn in range(1, 50):
        held = slots.acquire(specs(f"openness+{turn / 100}"), instead_of=held)
        slots.release(slots.acquire(specs(f"openness-{turn / 100}")))
    assert list(slots._uses) == list(specs("openness+0.49"))


def test_too_few_slots_are_refused(make_slots) -> None:
    with pytest.raises(NptiError, match="slots is 1; at least 2 are needed"):
        make_slots(1)


def test_personality_that_would_do_nothing_is_refused(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama, caps="none")
    trait = adapter.traits["openness"]
    arrays = trait.poles[Pole.HIGH].neurons.arrays()
    none = replace(trait.poles[Pole.HIGH].neurons, **{name: array[:0] for name, array in arrays.items()})
    poles = {**trait.poles, Pole.HIGH: replace(trait.poles[Pole.HIGH], neurons=none)}
    slots = Slots(adapter.with_trait(replace(trait, poles=poles)), find_sites(tiny_llama), 2, None)
    with pytest.raises(NptiError, match=r"'openness\+' would do nothing: the adapter moves no neurons for it"):
        slots.acquire(specs("openness+"))
    assert slots.acquire(specs("openness-")).slots == (1,)


def test_shift_too_large_for_the_dtype_leaves_the_slot_free(tiny_llama, tiny_adapter) -> None:
    tiny_llama.half()
    slots = Slots(tiny_adapter(tiny_llama), find_sites(tiny_llama), 2, None)
    with pytest.raises(NptiError, match=r"do not fit torch\.float16"):
        slots.acquire(specs("openness+1000000"))
    with pytest.raises(NptiError, match=r"do not fit torch\.float16"):  # not taken for filled
        slots.acquire(specs("openness+1000000"))
    assert slots.acquire(specs("openness+")).slots == (1,)
    assert slots.tables[0].shift[1].isfinite().all()


@pytest.mark.parametrize("in_force", [("openness+",), ("openness+", "openness-")])
def test_a_refusal_spoils_no_slot_that_is_in_force(tiny_llama, tiny_adapter, in_force: tuple[str, ...]) -> None:
    """The other personality asked for could be written, and into a slot that would have been given up."""
    slots = Slots(tiny_adapter(tiny_llama.half()), find_sites(tiny_llama), 1 + len(in_force), None)
    held = slots.acquire(specs(*in_force))
    before = [(tables.cap.clone(), tables.shift.clone()) for tables in slots.tables]
    wanted = ("neuroticism+", "openness+1000000")[-len(in_force) :]
    with pytest.raises(NptiError, match=r"do not fit torch\.float16"):
        slots.acquire(specs(*wanted), instead_of=held)
    for tables, (cap, shift) in zip(slots.tables, before, strict=True):
        assert torch.equal(tables.cap, cap)
        assert torch.equal(tables.shift, shift)
    assert slots.acquire(specs(*in_force)).slots == held.slots


def test_poles_that_ask_for_different_manners_are_refused_together(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama)
    trait = adapter.traits["neuroticism"]
    poles = {pole: replace(record, positions="all") for pole, record in trait.poles.items()}
    slots = Slots(adapter.with_trait(replace(trait, poles=poles)), find_sites(tiny_llama), 4, None)
    assert slots.acquire(specs("neuroticism+")).positions == "all"
    with pytest.raises(NptiError, match=r"ask for different positions or dropout \(all, generated; \[0.0\]\)"):
        slots.acquire(specs("openness+", "neuroticism+"))


def test_threads_never_see_anothers_row(make_slots) -> None:
    slots = make_slots(10)  # fewer than there are personalities, as many as are in use at a time

    def work(number: int) -> bool:
        right = True
        for step in range(30):
            (spec,) = specs(f"openness+{1 + (7 * number + step) % 23}")
            selection = slots.acquire((spec,))
            expected = steering_rows(slots._adapter, spec, [48] * 3)[1].shift
            right &= torch.equal(slots.tables[1].shift[selection.slots[0]], torch.from_numpy(expected).float())
            slots.release(selection)
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
