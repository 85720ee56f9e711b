"""The file of a pole's statistics: read back whole, merged exactly, the same bytes, and refused where it is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.config import base_model_to_json
from npti_export.errors import NptiError
from npti_export.identification.statistics import SUMS, NeuronCounts, NeuronStatistics, bin_edges
from npti_export.identification.statistics_file import read_statistics, write_statistics
from npti_export.traits import Pole

MODEL = BaseModel("someone/small", None, "llama", 2, (LayerNeurons(4), LayerNeurons(3)), "silu", True, "a" * 64)
LAYERS = [{"dense": dense, "experts": 0, "per_expert": 0, "shared": 0} for dense in ("4", 3)]
BINS = len(bin_edges()) + 1


def statistics(seed: int, tokens: int = 40) -> NeuronStatistics:
    rng = np.random.default_rng(seed)
    histogram = np.zeros((7, BINS), np.int32)
    for row in histogram:
        row[50:300] = rng.multinomial(tokens, np.full(250, 1 / 250))
    halves = []
    for part in (tokens // 2, tokens - tokens // 2):
        sums = [rng.integers(-(2**40), 2**40, size=7) for _ in SUMS]
        sums[0] = rng.integers(0, part + 1, size=7)
        halves.append(NeuronCounts(3, part, part * part, *sums))
    return NeuronStatistics((4, 3), (halves[0], halves[1]), histogram, rng.integers(-(2**50), 2**50, (2, 5)))


def equal(one: NeuronStatistics, other: NeuronStatistics) -> None:
    assert one.widths == other.widths
    np.testing.assert_array_equal(one.histogram, other.histogram)
    assert one.histogram.dtype == other.histogram.dtype == np.int32
    for mine, theirs in zip(one.halves, other.halves, strict=True):
        for name in ("answers", "tokens", "token_squares", *SUMS):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert one.stream is not None
    assert other.stream is not None
    np.testing.assert_array_equal(one.stream, other.stream)


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(0, np.uint8), (40, np.uint8), (400_000, np.uint16), (20_000_000, np.int32)]
)
def test_read_back_is_what_was_written(tmp_path: Path, tokens: int, dtype: type[np.generic]) -> None:
    path = tmp_path / "new" / "openness_high.safetensors"
    written = statistics(0, tokens)
    write_statistics(path, written, MODEL, "openness", Pole.HIGH)
    read, model = read_statistics(path, "openness", Pole.HIGH)
    equal(read, written)
    assert model == MODEL
    kept = load_file(path)["histogram"]
    assert kept.dtype == dtype
    used = np.flatnonzero(written.histogram.any(axis=0))
    assert kept.shape == (
        7,
        used[-1] - used[0] + 1 if tokens else 0,
    )  # of 1,474 bins those between the first and last used
    assert kept.shape[1] <= 250
    first = path.read_bytes()
    write_statistics(path, read, model, "openness", Pole.HIGH)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["openness_high.safetensors"]


def test_files_merge_exactly_in_any_order(tmp_path: Path) -> None:
    parts = []
    for seed in range(4):
        path = tmp_path / f"{seed}.safetensors"
        write_statistics(path, statistics(seed, 10 + seed), MODEL, "openness", Pole.LOW)
        parts.append(read_statistics(path, "openness", Pole.LOW)[0])
    forth = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    back = parts[3] + (parts[1] + (parts[2] + parts[0]))
    equal(forth, back)
    assert forth.whole.tokens == 46
    assert forth.whole.answers == 24
    other = NeuronStatistics((4, 4), parts[0].halves, parts[0].histogram)
    with pytest.raises(NptiError, match="over 7 neurons and over 8 neurons are not of one model"):
        parts[0] + other


def test_the_header_is_one_key_of_json(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, statistics(0), MODEL, "openness", Pole.HIGH)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["npti_export"]
    header = json.loads(metadata["npti_export"])
    assert (header["kind"], header["trait"], header["pole"], header["widths"]) == (
        "statistics",
        "openness",
        "high",
        [4, 3],
    )


def no_tensor(name: str) -> Callable[[dict[str, NDArray[Any]], dict[str, Any]], None]:
    def change(tensors: dict[str, NDArray[Any]], _header: dict[str, Any]) -> None:
        del tensors[name]

    return change


def put(name: str, value: NDArray[Any]) -> Callable[[dict[str, NDArray[Any]], dict[str, Any]], None]:
    return lambda tensors, _: tensors.update({name: value})


def said(**fields: Any) -> Callable[[dict[str, NDArray[Any]], dict[str, Any]], None]:
    return lambda _, header: header.update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_tensor("active"), "holds the tensors"),
        (put("more", np.zeros(1, np.int64)), "holds the tensors"),
        (put("total", np.zeros((2, 7), np.float32)), r"total is float32 \[2, 7\], expected int64 \[2, 7\]"),
        (put("total", np.zeros((2, 6), np.int64)), r"total is int64 \[2, 6\], expected int64 \[2, 7\]"),
        (put("tokens", np.array([20, 21])), "do not add up to its 41 tokens"),
        (put("tokens", np.array([-20, 60])), "do not add up"),
        (put("active", np.full((2, 7), 21)), "do not add up"),
        (put("histogram", np.zeros((7, 2), np.float32)), "histogram is float32"),
        (put("histogram", np.zeros((6, 2), np.uint8)), r"histogram is uint8 \[6, 2\]"),
        (put("histogram", np.zeros(7, np.uint8)), r"histogram is uint8 \[7\]"),
        (put("first_bin", np.array([BINS - 1])), f"from bin {BINS - 1} on, expected 7 neurons and at most {BINS} bins"),
        (put("first_bin", np.array([-1])), "from bin -1"),
        (put("stream", np.zeros((2, 5))), r"stream is float64 \[2, 5\], expected int64 \[2, 5\]"),
        (put("stream", np.zeros((3, 5), np.int64)), r"stream is int64 \[3, 5\], expected int64 \[2, 5\]"),
        (put("stream", np.zeros(2, np.int64)), r"stream is int64 \[2\], expected int64 \[2, 2\]"),
        (put("stream", np.array(2)), r"stream is int64 \[\], expected int64 \[2, 1\]"),
        (said(kind="adapter"), "no file of statistics of this release"),
        (said(format_version=1), r"of this release \(kind 'statistics', version 1\); measure again"),
        (said(format_version=3), "no file of statistics of this release"),
        (
            said(base_model=base_model_to_json(MODEL) | {"neurons_per_layer": LAYERS}),
            "no file of statistics of this release",
        ),
        (said(base_model={"id": "x"}), "no file of statistics of this release"),
        (said(widths=[4, 4]), "widths add up to 8 neurons, its base model has 7"),
        (said(widths=[7]), "widths add up to 7"),
        (said(trait="neuroticism"), "holds statistics of neuroticism high, expected openness high"),
        (said(pole="low"), "holds statistics of openness low"),
    ],
)
def test_a_broken_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, NDArray[Any]], dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, statistics(0), MODEL, "openness", Pole.HIGH)
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["npti_export"])
    change(tensors, header)
    save_file(tensors, path, metadata={"npti_export": json.dumps(header)})
    with pytest.raises(NptiError, match=message) as refused:
        read_statistics(path, "openness", Pole.HIGH)
    assert str(refused.value).startswith(str(path))


def test_a_file_of_before_the_residual_stream_was_measured_is_read_without_it(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, statistics(0), MODEL, "openness", Pole.HIGH)
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    del tensors["stream"]
    save_file(tensors, path, metadata=metadata)
    read, _ = read_statistics(path, "openness", Pole.HIGH)
    assert read.stream is None
    assert read.stream_mean is None
    np.testing.assert_array_equal(read.histogram, statistics(0).histogram)
    assert (read + statistics(0)).stream is None
    again = tmp_path / "again.safetensors"
    write_statistics(again, read, MODEL, "openness", Pole.HIGH)
    assert "stream" not in load_file(again)


@pytest.mark.parametrize("data", [b"", b"no safetensors at all", b"\xff" * 40])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(data)
    with pytest.raises(NptiError, match="is no file of statistics"):
        read_statistics(path, "openness", Pole.HIGH)


def test_a_file_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match="is not there; `npti-export measure --trait wit` writes it"):
        read_statistics(tmp_path / "s.safetensors", "wit", Pole.HIGH)


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NptiError, match="cannot be written"):
        write_statistics(tmp_path / "file" / "s.safetensors", statistics(0), MODEL, "wit", Pole.LOW)
