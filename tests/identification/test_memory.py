"""What is said of memory before a run, against what statistics of a measured model hold."""

from __future__ import annotations

from typing import Any

from chat_models import tiny_chat_model, tiny_tokenizer

from npti_export.identification.elicit import Transcript
from npti_export.identification.measure import measure
from npti_export.identification.memory import counts_bytes, memory_line
from npti_export.identification.statistics import SUMS
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole


def test_bytes_are_those_of_the_statistics() -> None:
    model = tiny_chat_model()
    sites = find_sites(model)
    said = Transcript("openness", Pole.HIGH, "Q?", "P.", "", (10, 20, 30), False)
    measured = measure(model, tiny_tokenizer(), sites, [said, said])
    of_halves = sum(getattr(half, name).nbytes for half in measured.halves for name in SUMS)
    assert counts_bytes(sum(site.neurons for site in sites)) == measured.histogram.nbytes + of_halves


def test_what_is_said() -> None:
    sites: Any = [_Site(14_336)] * 32
    once = counts_bytes(458_752) / 1e9
    assert once > 1
    said = f"takes {once:.1f} GB beside the model and up to {4 * once:.1f} GB of the machine's memory."
    assert memory_line(sites) == f"Counting 458,752 neurons {said}"
    assert memory_line(sites[:1]).startswith(f"Counting 14,336 neurons takes {once * 1000 / 32:.0f} MB beside")


class _Site:
    def __init__(self, neurons: int) -> None:
        self.neurons = neurons
