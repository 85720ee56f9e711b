"""Published NPTI results: every row survives, and whatever else stands in the files is refused by name."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_results import HIGH, LAYERS, LOW, WIDTH, write_results

from npti_export.adapter import published
from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.model_config import base_model_from_config
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.published import read_published
from npti_export.errors import NptiError
from npti_export.traits import Pole

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "npti" / "neuron_results"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published results are not on this machine")
Row = tuple[int, int, np.float32, np.float32]


@pytest.fixture
def model() -> BaseModel:
    return base_model_from_config("someone/tiny", num_layers=LAYERS, neurons_per_layer=WIDTH)


def rows_of(layers: dict[str, list[list[Any]]]) -> list[Row]:
    """The rows of a published file, by plain iteration, sorted as the format wants them."""
    found = [(row[0], row[1], np.float32(row[2]), np.float32(row[4])) for rows in layers.values() for row in rows]
    return sorted(found, key=lambda row: row[:2])


def rows_in(neurons: NeuronSet) -> list[Row]:
    columns = (neurons.layer.tolist(), neurons.index.tolist(), neurons.delta, neurons.target)
    return list(zip(*columns, strict=True))


def test_every_row_survives_at_the_papers_dose(tmp_path: Path, model: BaseModel) -> None:
    trait = read_published(write_results(tmp_path), model)["agreeableness"]
    assert trait.identification.source == "imported"
    for pole, layers in ((Pole.HIGH, HIGH), (Pole.LOW, LOW)):
        record = trait.poles[pole]
        assert rows_in(record.neurons) == rows_of(layers)
        assert (record.gamma, record.calibrated, record.dropout, record.caps) == (1.4, False, 0.0, "opposite")
        assert record.neurons.mean_difference is None
        for (_, _, delta, target), shift in zip(rows_of(layers), record.neurons.shift, strict=True):
            by_hand = 1.4 * float(target) / (1 + math.exp(-10 * (float(delta) - 0.15)))
            assert shift == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "gamma"),
    [
        ("Openness", 0.6),
        ("Conscientiousness", 1.2),
        ("Extraversion", 1.1),
        ("Agreeableness", 1.4),
        ("Neuroticism", 1.4),
        ("Dry_wit", 1.4),
    ],
)
def test_dose_of_each_trait(tmp_path: Path, model: BaseModel, name: str, gamma: float) -> None:
    traits = read_published(write_results(tmp_path, name), model)
    assert [record.gamma for record in traits[name.lower()].poles.values()] == [gamma, gamma]


def test_several_traits_come_in_canonical_order_and_load_again(tmp_path: Path, model: BaseModel) -> None:
    folder = tmp_path / "results"
    for name in ("Neuroticism", "Openness", "wit_reversed_in_name"):
        write_results(folder, name)
    (folder / "README.txt").write_text("not a result", encoding="utf-8")
    traits = read_published(folder, model)
    assert list(traits) == ["openness", "neuroticism", "wit_reversed_in_name"]
    adapter = PersonalityAdapter(model, traits)
    adapter.save_pretrained(tmp_path / "adapter")
    assert PersonalityAdapter.from_pretrained(tmp_path / "adapter") == adapter


GOOD = [1, 5, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("layers", "parts"),
    [
        ({"1": [GOOD, [1, 6, 0.5, 0.6]]}, ["layer 1, row 2", "[1, 6, 0.5, 0.6]", "five numbers"]),
        ({"1": [[1, 6, 0.5, 0.6, "0.7"]]}, ["layer 1, row 1", '"0.7"', "five numbers"]),
        ({"1": [[1, 6, 0.5, 0.6, True]]}, ["row 1", "true", "five numbers"]),
        ({"1": [None]}, ["row 1", "null", "five numbers"]),
        ({"1": {"0": GOOD}}, ["layer 1", "a list of rows"]),
        ({"2": [GOOD]}, ["layer 2, row 1", "names layer 1, 2 was expected"]),
        ({"1": [[1.0, 6, 0.5, 0.6, 0.7]]}, ["row 1", "names layer 1.0"]),
        ({"1": [[1, WIDTH, 0.5, 0.6, 0.7]]}, ["row 1", f"index {WIDTH}", f"from 0 to {WIDTH - 1}"]),
        ({"1": [[1, -1, 0.5, 0.6, 0.7]]}, ["row 1", "index -1"]),
        ({"1": [[1, 2.5, 0.5, 0.6, 0.7]]}, ["row 1", "index 2.5", "whole number"]),
        ({"1": [GOOD, GOOD]}, ["layer 1, row 2", "neuron 1:5 stands there twice"]),
        ({"1": [[1, 6, 0.0, 0.6, 0.7]]}, ["row 1", "delta 0.0"]),
        ({"1": [[1, 6, -0.2, 0.6, 0.7]]}, ["row 1", "delta -0.2"]),
        ({"1": [[1, 6, 1.01, 0.6, 0.7]]}, ["row 1", "delta 1.01", "at most 1"]),
        ({"1": [[1, 6, 1e-60, 0.6, 0.7]]}, ["row 1", "delta 1e-60"]),
        ({"1": [[1, 6, math.nan, 0.6, 0.7]]}, ["row 1", "delta NaN"]),
        ({"1": [[1, 6, 0.5, 1.5, 0.7]]}, ["row 1", "probability 1.5"]),
        ({"1": [[1, 6, 0.5, 0.6, 0]]}, ["row 1", "target 0"]),
        ({"1": [[1, 6, 0.5, 0.6, math.inf]]}, ["row 1", "target Infinity"]),
        ({"1": [[1, 6, 0.5, 0.6, 10**400]]}, ["row 1", "target 1000000", "finite"]),
        ({"3": [[3, 6, 0.5, 0.6, 0.7]]}, ['layer "3"', "from 0 to 2", "someone/tiny"]),
        ({"01": [GOOD]}, ['layer "01"', "from 0 to 2"]),
        ({"-1": [GOOD]}, ['layer "-1"']),
        ({"9" * 5000: [GOOD]}, ['layer "9999', "from 0 to 2"]),
        ({"one\x1b[31m": [GOOD]}, ['layer "one\\u001b[31m"']),
        ({}, ["holds no rows"]),
        ([GOOD], ["[[1, 5, 0.5, 0.6, 0.7]]", "was expected"]),
        (None, ["null", "was expected"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, model: BaseModel, layers: Any, parts: list[str]) -> None:
    """In either file; the message names it, the layer and the row, and is one line that a terminal can show."""
    for name in ("Agreeableness_dict.json", "Agreeableness_reversed_dict.json"):
        write_results(tmp_path)
        (tmp_path / name).write_text(json.dumps(layers), encoding="utf-8")
        with pytest.raises(NptiError) as refused:
            read_published(tmp_path, model)
        message = str(refused.value)
        assert message.isprintable()
        assert len(message) < 500
        for part in [name, *parts]:
            assert part in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"1": [[1, 5, 0.5, 0.6, 0.7]], "1": [[1, 6, 0.5, 0.6, 0.7]]}', 'the key "1" stands there twice'),
        (b'{"1": [[1, 5, 0.5,', "is no JSON (Expecting value: line 1"),
        (b"", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b'{"1": [[1, ' + b"5" * 5000 + b", 0.5, 0.6, 0.7]]}", "is no JSON"),
        (b'{"1": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_files_that_are_no_such_json(tmp_path: Path, model: BaseModel, content: bytes, part: str) -> None:
    (write_results(tmp_path) / "Agreeableness_dict.json").write_bytes(content)
    with pytest.raises(NptiError) as refused:
        read_published(tmp_path, model)
    assert "Agreeableness_dict.json" in str(refused.value)
    assert part in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["0", "1", "2", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(-1, 50), st.floats(-0.5, 1.5), st.floats(0, 1), st.floats(-1, 4) | st.none()
    ),
    max_size=3,
)


@given(st.dictionaries(st.sampled_from(["0", "1", "2"]), ROWS, max_size=3) | JSON)
def test_any_json_is_read_whole_or_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = write_results(tmp_path_factory.mktemp("any"), low={"2": [[2, 47, 0.5, 0.6, 0.7]]})
    (folder / "Agreeableness_dict.json").write_text(json.dumps(content), encoding="utf-8")
    model = base_model_from_config("someone/tiny", num_layers=LAYERS, neurons_per_layer=WIDTH)
    try:
        trait = read_published(folder, model)["agreeableness"]
    except NptiError:
        return
    trait.poles[Pole.HIGH].neurons.check(model, "what was read")
    assert rows_in(trait.poles[Pole.HIGH].neurons) == rows_of(content)


def test_folders_that_hold_no_whole_results(tmp_path: Path, model: BaseModel) -> None:
    with pytest.raises(NptiError, match="There is no folder"):
        read_published(tmp_path / "nowhere", model)
    with pytest.raises(NptiError, match=r"holds no published results; files such as Openness_dict.json"):
        read_published(tmp_path, model)
    write_results(tmp_path, "Openness")
    (tmp_path / "Openness_reversed_dict.json").unlink()
    with pytest.raises(NptiError, match=r"Openness_dict.json stands without Openness_reversed_dict.json, the low pole"):
        read_published(tmp_path, model)
    (tmp_path / "Openness_dict.json").rename(tmp_path / "Openness_reversed_dict.json")
    with pytest.raises(
        NptiError, match=r"Openness_reversed_dict.json stands without Openness_dict.json, the high pole"
    ):
        read_published(tmp_path, model)


@pytest.mark.parametrize("name", ["Neutral", "Dry wit", "4ever"])
def test_names_that_no_trait_can_have(tmp_path: Path, model: BaseModel, name: str) -> None:
    with pytest.raises(NptiError, match=f"{name.lower()!r} is no name of a trait"):
        read_published(write_results(tmp_path, name), model)


def test_one_trait_under_two_names(tmp_path: Path, model: BaseModel) -> None:
    write_results(tmp_path, "Openness")
    write_results(tmp_path, "openness")
    if len(list(tmp_path.iterdir())) < 4:
        pytest.skip("this file system does not tell capitals apart")
    with pytest.raises(NptiError, match="are both the high pole of openness"):
        read_published(tmp_path, model)


def test_a_neuron_of_both_poles(tmp_path: Path, model: BaseModel) -> None:
    write_results(tmp_path, low={"1": [[1, 40, 0.2, 0.3, 0.4]]})
    with pytest.raises(NptiError, match="neuron 1:40 stands in both files of agreeableness"):
        read_published(tmp_path, model)


def test_what_is_no_file_or_too_large(tmp_path: Path, model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_results(tmp_path) / "Agreeableness_dict.json"
    monkeypatch.setattr(published, "MAX_BYTES", 100)
    with pytest.raises(NptiError, match="at most 100 are expected"):
        read_published(tmp_path, model)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(NptiError, match="is no plain file"):
        read_published(tmp_path, model)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(NptiError, match="is no plain file"):
        read_published(tmp_path, model)


@needs_published
def test_the_published_results_of_llama_3(tmp_path: Path) -> None:
    model = base_model_from_config("meta-llama/Meta-Llama-3-8B-Instruct", num_layers=32, neurons_per_layer=14336)
    adapter = PersonalityAdapter(model, read_published(PUBLISHED, model))
    counts = {name: [len(record.neurons) for record in trait.poles.values()] for name, trait in adapter.traits.items()}
    assert counts == {"conscientiousness": [10_278, 16_997], "agreeableness": [21_008, 21_083]}
    adapter.save_pretrained(tmp_path)
    loaded = PersonalityAdapter.from_pretrained(tmp_path)
    assert loaded == adapter
    for name, trait in loaded.traits.items():
        for pole, ending in ((Pole.HIGH, "dict"), (Pole.LOW, "reversed_dict")):
            layers = json.loads((PUBLISHED / f"{name.capitalize()}_{ending}.json").read_bytes())
            assert rows_in(trait.poles[pole].neurons) == rows_of(layers)
        assert (tmp_path / f"{name}.safetensors").stat().st_size < 18 * sum(counts[name]) + 4_000
