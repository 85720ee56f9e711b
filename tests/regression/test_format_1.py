"""An adapter that the first release of format version 1 wrote: every later release reads it and writes it the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.records import DosePoint, Identification, Method
from npti_export.traits import Pole

FOLDER = Path(__file__).parent / "format_1"
"""Written once and never again. It has no model card: the card's text is no part of the format."""

VALUES = {
    ("openness", "high"): {
        "layer": [0, 1, 1, 2],
        "index": [3, 7, 5, 0],
        "shift": [1.8321573, 3.7187345, 0.6637912, 3.6792526],
        "target": [1.5598738, 2.853868, 0.47527087, 2.848516],
        "delta": [0.31505674, 0.40982747, 0.7535472, 0.39781928],
        "expert": [-1, -1, 0, 3],
        "mean_difference": [0.3645724, 0.2941325, 0.028422242, 0.546713],
        "effect_size": [-0.73645407, -0.16290995, -0.48211932, 0.5988462],
    },
    ("openness", "low"): {
        "layer": [0, 1, 1],
        "index": [1, 5, 5],
        "shift": [0.5125731, 1.2815479, 3.4137833],
        "target": [0.82175577, 0.93054885, 2.451966],
        "delta": [0.12812854, 0.5600855, 0.6692765],
        "expert": [-1, 1, 3],
        "mean_difference": [-0.32542282, 0.7738066, 0.28121066],
        "effect_size": [-0.5538228, 0.97756743, -0.31055656],
    },
    ("extraversion", "high"): {
        "layer": [0, 1, 1, 2],
        "index": [3, 7, 5, 0],
        "shift": [0.5, -0.5625, 0.9375, -1.875],
        "target": [0.30266505, 0.748591, 2.4137597, 1.767378],
        "delta": [0.13000935, -0.4181579, 0.4571936, -0.18577808],
        "expert": [-1, -1, 0, 3],
        "mean_difference": [0.2, -0.225, 0.375, -0.75],
        "effect_size": [0.8, -0.9, 1.5, -3.0],
    },
    ("extraversion", "low"): {
        "layer": [0, 1, 1],
        "index": [1, 5, 5],
        "shift": [1.6747746, 2.148337, 3.6927714],
        "target": [2.8320155, 1.5584162, 2.929919],
        "delta": [0.11871062, 0.56625247, 0.3700136],
        "expert": [-1, 1, 3],
        "mean_difference": [-0.62346375, 0.14863153, -1.6081878],
        "effect_size": [0.24177188, 0.23538092, 1.575626],
    },
    ("wit", "high"): {
        "layer": [0, 1, 1, 2],
        "index": [3, 7, 5, 0],
        "shift": [0.5, -0.5625, 0.9375, -1.875],
        "target": [-1.6375848, -1.062649, -1.1387484, -1.1547655],
        "delta": [0.88932824, -0.5878428, 0.6231753, -0.33046892],
        "expert": [-1, -1, 0, 3],
        "mean_difference": [0.2, -0.225, 0.375, -0.75],
        "effect_size": [0.8, -0.9, 1.5, -3.0],
        "residual_layer": [1],
        "residual": [[1.0, 1.0, 1.0, 1.0, 1.0]],
    },
    ("wit", "low"): {
        "layer": [0, 1, 1],
        "index": [1, 5, 5],
        "shift": [0.0, 0.0, 0.0],
        "target": [1.8940316, 2.6967807, 2.3382728],
        "delta": [0.24142611, 0.30514133, 0.7925204],
        "expert": [-1, 1, 3],
        "residual_layer": [0, 2],
        "residual": [
            [-1.7382663, -1.3366427, -1.3611068, -0.35161713, -2.3125815],
            [-0.18889719, -0.95722926, 0.89360017, 0.95684725, 1.3922583],
        ],
    },
}
"""What every tensor holds, as the shortest decimals that tell a float32 from its neighbours."""


@pytest.fixture(scope="module")
def read() -> PersonalityAdapter:
    return PersonalityAdapter.from_pretrained(FOLDER)


@pytest.mark.parametrize(("trait", "pole"), VALUES)
def test_every_number_is_read_as_it_was_written(read, trait, pole):
    record = read.traits[trait].poles[Pole(pole)]
    found = dict(record.neurons.arrays())
    if record.residual is not None:
        found |= {"residual_layer": record.residual.layer, "residual": record.residual.vector}
    expected = VALUES[trait, pole]
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert np.array_equal(found[name], np.array(numbers, found[name].dtype)), name


def test_what_is_said_of_the_base_model_and_the_poles(read):
    expert_layer = LayerNeurons(dense=0, experts=4, per_expert=6, shared=8)
    assert read.base_model == BaseModel(
        id="someone/mixture",
        revision=None,
        model_type="llama",
        num_layers=3,
        neurons_per_layer=(LayerNeurons(dense=12, experts=0, per_expert=0, shared=0), expert_layer, expert_layer),
        activation="silu",
        gated=True,
        fingerprint="c" * 64,
    )
    assert list(read.traits) == ["openness", "extraversion", "wit"]
    said = {
        (name, str(pole)): (record.method.name, record.gamma, record.calibrated, record.caps, record.positions)
        for name, trait in read.traits.items()
        for pole, record in trait.poles.items()
    }
    assert said == {
        ("openness", "high"): ("npti", 1.4, True, "opposite", "generated"),
        ("openness", "low"): ("npti", 1.4, True, "opposite", "generated"),
        ("extraversion", "high"): ("mean-shift", 2.5, False, "none", "generated"),
        ("extraversion", "low"): ("npti", 1.4, True, "opposite", "generated"),
        ("wit", "high"): ("hybrid", 2.5, False, "opposite", "generated"),
        ("wit", "low"): ("residual", 1.5, False, "none", "generated"),
    }
    openness = read.traits["openness"]
    assert openness.poles[Pole.HIGH].method == Method("npti", 0.1, 95.0, 10.0, 0.15, None)
    assert openness.poles[Pole.HIGH].dose_curve == (DosePoint(0.7, 0.2, 1.1), DosePoint(1.4, 0.31, 1.25))
    assert openness.poles[Pole.HIGH].scores == {"local": {"effect": [0.31, 0.25, 0.37], "judge": "local"}}
    assert read.traits["wit"].poles[Pole.HIGH].method.min_effect_size == 0.8
    assert read.traits["wit"].poles[Pole.LOW].method.min_difference == 0.2
    assert openness.identification == Identification(
        source="identified",
        questions_sha256="a" * 64,
        personas_sha256="b" * 64,
        transcripts=60,
        tokens={"high": 1200, "low": 1100},
        seed=3,
        split_half_reliability=0.987,
        versions={"torch": "2.13.0"},
    )


def test_it_is_saved_again_byte_for_byte(read, tmp_path):
    read.save_pretrained(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "README.md"}
    assert written == {path.name: path.read_bytes() for path in FOLDER.iterdir()}
