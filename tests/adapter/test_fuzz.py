"""Ten thousand damaged folders: each is refused in one sentence, or it is read as a whole adapter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from invariants import assert_invariants
from mutations import Files, mutate, rehash, write

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError


def assert_one_sentence(message: str, folder: Path) -> None:
    assert str(folder) in message, "it does not say where"
    said = message.replace(str(folder), "")
    assert said.isprintable(), "it is not one line"
    assert said.endswith((".", ";")), "it is no sentence"
    assert 20 < len(said) < 500, "it is too long"
    assert "Traceback" not in said


def outcome(folder: Path, original: PersonalityAdapter, rehashed: bool) -> str:
    """Reads a damaged folder and holds what comes of it against what is promised."""
    try:
        read = PersonalityAdapter.from_pretrained(folder)
    except NptiError as error:
        assert_one_sentence(str(error), folder)
        return "refused"
    if read == original:
        return "the same"
    assert rehashed, f"a change was not seen: {read!r}"
    assert_invariants(read)
    read.save_pretrained(folder.parent / "again")
    assert PersonalityAdapter.from_pretrained(folder.parent / "again") == read
    return "another"


def fuzz(original: PersonalityAdapter, place: Path, seeds: range) -> Counter[tuple[str, bool, str]]:
    """How often each kind of damage, with hashes put right or not, came out how."""
    original.save_pretrained(place / "outside")
    whole: Files = {path.name: path.read_bytes() for path in (place / "outside").iterdir()}
    folder = place / "damaged"
    folder.mkdir()
    counts: Counter[tuple[str, bool, str]] = Counter()
    for seed in seeds:
        files, rehashed = dict(whole), seed % 2 == 1
        kind = mutate(Random(seed), files, place / "outside")
        if rehashed:
            rehash(files)
        write(folder, files)
        try:
            counts[kind, rehashed, outcome(folder, original, rehashed)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed} ({kind}, hashes {'' if rehashed else 'not '}put right)") from error
    return counts


def assert_handled(counts: Counter[tuple[str, bool, str]], mutations: int) -> None:
    assert counts.total() == mutations
    # The fuzzer itself: damage behind right hashes is mostly found, and enough of it is no damage but another adapter.
    behind = Counter[str]()
    for (_, rehashed, how), count in counts.items():
        behind[how] += count * rehashed
    assert behind["refused"] > 0.4 * behind.total()
    assert behind["another"] > 0.02 * behind.total()
    assert all(counts[kind, True, "refused"] for kind, _, _ in counts)


def test_what_is_not_damaged_holds_every_invariant(adapter, mixture):
    assert_invariants(adapter)
    assert_invariants(mixture)


def test_damaged_folders(mixture, tmp_path):
    assert_handled(fuzz(mixture, tmp_path, range(600)), 600)


@pytest.mark.slow
def test_ten_thousand_damaged_folders(mixture, tmp_path):
    assert_handled(fuzz(mixture, tmp_path, range(10_000)), 10_000)
