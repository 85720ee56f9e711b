"""How much memory counting takes: said before a run, because what a machine cannot hold should not be begun."""

from __future__ import annotations

from collections.abc import Sequence

from npti_export.identification.statistics import SUMS, bin_edges
from npti_export.steering.sites import Site

AT_ONCE = 4
"""So often the counts are in the machine's memory: both poles', those of a block, and the sum that they go into."""


def counts_bytes(neurons: int) -> int:
    """What is kept of so many neurons of one pole: int32 for every bin, int64 for every sum of either half.

    >>> counts_bytes(458_752)  # Llama-3-8B
    2748841984
    """
    return neurons * ((len(bin_edges()) + 1) * 4 + len(SUMS) * 2 * 8)


def memory_line(sites: Sequence[Site]) -> str:
    """What counting takes, in a sentence.

    Args:
        sites: The model's feed-forward activations.
    """
    neurons = sum(site.neurons for site in sites)
    once = counts_bytes(neurons)
    return (
        f"Counting {neurons:,} neurons takes {_size(once)} beside the model and up to {_size(AT_ONCE * once)} of the "
        "machine's memory."
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
