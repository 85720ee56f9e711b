"""``identify`` in a process of its own, killed (SIGKILL) at random moments: the same call ends in the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from identify_process import contents, run_in_process

from npti_export.adapter.adapter import PersonalityAdapter

KILLS = 10
LAST_STEPS = (30, 60, 90)
"""A kill comes at one of the first 30, 60 or 90 steps, in turn; a run has about 150: for each of two traits about 20 to
ask and measure, and 55 to find the dose, which begins anew."""

# Forked from a process that has imported everything and run nothing: a new interpreter a kill would take a minute.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["npti_export.pipeline", "identify_process"])


def identify_for(folder: Path, steps: float, seconds: float = 0.0) -> bool:
    """Runs it, and kills it so many seconds after so many steps; whether it came to its end."""
    hears, says = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=run_in_process, args=(folder, says))
    process.start()
    says.close()
    heard = 0
    try:
        while heard < steps:
            hears.recv()
            heard += 1
    except EOFError:
        process.join()
        assert process.exitcode == 0
        return True
    time.sleep(seconds)
    process.kill()
    process.join()
    return False


def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    assert identify_for(tmp_path / "whole", float("inf"))
    whole = contents(tmp_path / "whole")
    folder, rng = tmp_path / "killed", random.Random(4)  # with this seed there are kills in both traits' stages
    killed, seen = 0, set()
    for kill in range(KILLS):
        if not identify_for(folder, rng.randrange(LAST_STEPS[kill % 3]), rng.uniform(0, 0.02)):
            killed += 1
            seen.add(frozenset(contents(folder).items()))
    assert killed >= 5
    assert len(seen) >= 3  # not always at the same place
    assert identify_for(folder, float("inf"))
    assert contents(folder) == whole
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert list(PersonalityAdapter.from_pretrained(folder).traits) == ["openness", "neuroticism"]
