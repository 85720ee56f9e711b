"""Ten thousand damaged folders: each is refused in one sentence, or it is read as a whole adapter."""

from __future__ import annotations

import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from invariants import assert_invariants
from mutations import Files, mutate, rehash, write

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError

SECONDS = 30
"""Longer than this is a hang: a folder takes 20 ms, ten times as much on a busy machine."""
TIMES = 10
"""How much memory reading may take at most, in sizes of the folder: JSON as Python's objects takes 6 to 8."""


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fails where what is done within hangs, or takes memory that has nothing to do with the size of the files."""

    def hang(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    tracemalloc.reset_peak()
    start, _ = tracemalloc.get_traced_memory()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken = tracemalloc.get_traced_memory()[1] - start
    assert taken <= TIMES * size, f"{taken} bytes of memory for {size} bytes of files"


@pytest.fixture
def traced_memory():
    """Without it :func:`bounded` sees no memory: reading takes four times as long where it is traced."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def assert_one_sentence(message: str, folder: Path) -> None:
    assert str(folder) in message, "it does not say where"
    said = message.replace(str(folder), "")
    assert said.isprintable(), "it is not one line"
    assert said.endswith("."), "it is no sentence"
    assert 20 < len(said) < 500, "it is too long"
    assert "Traceback" not in said


def outcome(folder: Path, original: PersonalityAdapter, rehashed: bool) -> str:
    """Reads a damaged folder and holds what comes of it against what is promised."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    try:
        with bounded(size):
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
    assert sum(count for (_, rehashed, _), count in counts.items() if rehashed) == mutations // 2
    kinds = {kind for kind, _, _ in counts}
    assert kinds >= {"_header_bytes", "_tensor_bytes", "_config_json", "_file_names", "_link"}
    assert all(counts[kind, rehashed, "refused"] for kind in kinds for rehashed in (True, False))


def test_the_bounds_are_bounds(traced_memory, monkeypatch):
    with pytest.raises(AssertionError, match="bytes of memory for 100 bytes of files"), bounded(100):
        bytearray(100_000)
    monkeypatch.setitem(globals(), "SECONDS", 0.1)
    with pytest.raises(AssertionError, match=r"it took more than 0\.1 s"), bounded(10**9):
        time.sleep(30)


def test_what_is_not_damaged_holds_every_invariant(adapter, mixture):
    assert_invariants(adapter)
    assert_invariants(mixture)


def test_damaged_folders(mixture, tmp_path):
    assert_handled(fuzz(mixture, tmp_path, range(600)), 600)


@pytest.mark.slow
def test_ten_thousand_damaged_folders(traced_memory, mixture, tmp_path):
    assert_handled(fuzz(mixture, tmp_path, range(10_000)), 10_000)
