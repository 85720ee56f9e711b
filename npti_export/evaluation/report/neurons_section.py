"""Where an adapter acts, layer by layer, as a section of an evaluation: what the picture of neurons is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.traits import Pole


def neurons_section(adapter: PersonalityAdapter) -> dict[str, Any]:
    """How many neurons of each layer a personality moves and caps, and behind which layers it adds a vector.

    Args:
        adapter: The adapter.

    Returns:
        ``layers``, and by personality ``method``, ``moved`` and ``capped`` (a count a layer) and ``residual`` (layers).

    >>> from npti_export.adapter.find import bundled_folder
    >>> section = neurons_section(PersonalityAdapter.from_pretrained(bundled_folder()))
    >>> len(section["personalities"]["openness+"]["moved"]) == section["layers"]
    True
    """
    layers = adapter.base_model.num_layers
    personalities = {}
    for trait in adapter.traits.values():
        for pole in Pole:
            record, opposite = trait.poles[pole], trait.poles[pole.opposite]
            moved = record.neurons.layer[record.neurons.shift != 0]
            capped = opposite.neurons.layer if record.caps == "opposite" else opposite.neurons.layer[:0]
            personalities[f"{trait.name}{pole.sign}"] = {
                "method": record.method.name,
                "moved": np.bincount(moved, minlength=layers).tolist(),
                "capped": np.bincount(capped, minlength=layers).tolist(),
                "residual": [] if record.residual is None else sorted(record.residual.layer.tolist()),
            }
    return {"layers": layers, "personalities": personalities}
