"""Whether an adapter fits a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_by_hand import base_model

from npti_export.adapter.base_model import LayerNeurons
from npti_export.errors import NptiError

MINE = base_model()


def test_the_same_model_fits_and_so_do_weights_that_cannot_be_told():
    assert MINE.check_fit(MINE) is None
    assert MINE.check_fit(replace(MINE, id="somewhere-else")) is None
    assert MINE.check_fit(replace(MINE, fingerprint=None)) is None
    assert replace(MINE, fingerprint=None).check_fit(MINE) is None


def test_another_fine_tune_is_a_warning_that_names_both():
    warning = MINE.check_fit(replace(MINE, id="other/tune", fingerprint="d" * 64))
    assert "someone/small-chat" in warning
    assert "other/tune" in warning


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2"}, r"\(model_type llama\) and does not fit other/model \(qwen2\)"),
        ({"num_layers": 4}, r"\(num_layers 3\) and does not fit other/model \(4\)"),
        ({"neurons_per_layer": (LayerNeurons(12), LayerNeurons(12), LayerNeurons(13))}, r"36\).*\(37\)"),
        ({"activation": "gelu"}, r"\(activation silu\) and does not fit other/model \(gelu\)"),
        ({"gated": False}, r"\(gated True\) and does not fit other/model \(False\)"),
    ],
)
def test_another_shape_is_an_error(change, said):
    with pytest.raises(NptiError, match=said):
        MINE.check_fit(replace(MINE, id="other/model", **change))


def test_neurons_are_counted_over_experts_and_layers():
    assert LayerNeurons(dense=5, experts=4, per_expert=6, shared=3).total == 32
    assert replace(MINE, neurons_per_layer=(LayerNeurons(7), LayerNeurons(experts=2, per_expert=5))).num_neurons == 17


def test_two_records_of_one_model_are_joined_and_what_either_knows_is_kept():
    imported = replace(MINE, fingerprint=None, model_type="unknown", activation="unknown")
    assert imported.joined(MINE) == MINE.joined(imported) == MINE
    assert imported.joined(imported) == imported
    older, newer = replace(MINE, revision="1" * 40), replace(MINE, revision="2" * 40)
    assert older.joined(newer) == newer
    assert older.joined(MINE) == MINE.joined(older) == older


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other/model"},
        {"fingerprint": "d" * 64},
        {"model_type": "qwen2"},
        {"gated": False},
        {"neurons_per_layer": (LayerNeurons(12), LayerNeurons(12), LayerNeurons(13))},
    ],
)
def test_records_of_two_models_are_not(change):
    assert MINE.joined(replace(MINE, **change)) is None
    assert replace(MINE, **change).joined(MINE) is None
