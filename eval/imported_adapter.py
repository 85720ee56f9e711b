"""Measures the adapter that import-npti makes of published NPTI results: size, load time, and that every row survives.

    python eval/imported_adapter.py FOLDER

FOLDER holds the authors' *_dict.json of Llama-3-8B-Instruct; eval/results/imported_adapter.md is written.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.model_config import base_model_from_config
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.published import read_published
from npti_export.traits import Pole

MODEL, LAYERS, WIDTH = "meta-llama/Meta-Llama-3-8B-Instruct", 32, 14336
REPEATS = 20
RESULT = Path(__file__).parent / "results" / "imported_adapter.md"
HEADER = """# Published NPTI results as an adapter

Made by `python eval/imported_adapter.py FOLDER` from the authors' result files of Llama-3-8B-Instruct. Same rows: the
set of (layer, index, delta, target) of the JSON, numbers as float32, is that of the adapter read back. Load: one call
of `PersonalityAdapter.from_pretrained` on a folder with that trait alone, every check of the format included.

| trait | neurons + / - | same rows | JSON, bytes | a neuron | safetensors, bytes | a neuron | load, median [95th] |
|---|---|---|---|---|---|---|---|
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    base_model = base_model_from_config(MODEL, LAYERS, WIDTH)
    began = time.process_time()
    traits = read_published(folder, base_model)
    imported = time.process_time() - began
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, trait in traits.items():
            PersonalityAdapter(base_model, {name: trait}).save_pretrained(Path(scratch, name))
            rows.append(row(name, files_of(folder, name), Path(scratch, name)))
        whole = Path(scratch, "all")
        PersonalityAdapter(base_model, traits).save_pretrained(whole)
        size = {file.name: file.stat().st_size for file in whole.iterdir()}
        load = load_time(partial(PersonalityAdapter.from_pretrained, whole))
    files = [path for name in traits for path in files_of(folder, name).values()]
    json_size, adapter_size = sum(path.stat().st_size for path in files), sum(size.values())
    parse = load_time(lambda: [json.loads(path.read_bytes()) for path in files])
    text = f"""{HEADER}{"".join(rows)}
All {len(traits)} traits in one folder, with config ({size["config.json"]:,} bytes) and card ({size["README.md"]:,}
bytes): {adapter_size:,} bytes, {json_size / adapter_size:.1f} times less than the {json_size:,} bytes of JSON. It loads
in {load} ms; to parse the JSON alone takes {parse} ms. The import took {imported:.2f} s.

Times: CPU time, so that what else the machine does is not counted, files in the page cache; the median of {REPEATS}
calls and, in brackets, the 95th percentile. CPython {platform.python_version()}, NumPy {np.__version__}.
"""
    RESULT.write_text(text, encoding="utf-8")
    click.echo(text)


def row(name: str, files: dict[Pole, Path], output: Path) -> str:
    """One trait: the rows of its files held against those of the adapter, the sizes of both, and the time to load."""
    poles = PersonalityAdapter.from_pretrained(output).traits[name].poles
    same = all(rows_in(path) == rows_of(poles[pole].neurons) for pole, path in files.items())
    high, low = (len(record.neurons) for record in poles.values())
    before = sum(path.stat().st_size for path in files.values())
    after = (output / f"{name}.safetensors").stat().st_size
    each = [f"{size:,} | {size / (high + low):.1f}" for size in (before, after)]
    load = load_time(partial(PersonalityAdapter.from_pretrained, output))
    return f"| {name} | {high:,} / {low:,} | {'yes' if same else 'NO'} | {each[0]} | {each[1]} | {load} ms |\n"


def rows_in(path: Path) -> list[tuple[int, int, np.float32, np.float32]]:
    """The rows of a published file, sorted."""
    layers = json.loads(path.read_bytes()).values()
    return sorted((row[0], row[1], np.float32(row[2]), np.float32(row[4])) for rows in layers for row in rows)


def rows_of(neurons: NeuronSet) -> list[tuple[int, int, np.float32, np.float32]]:
    """The rows of the adapter."""
    columns = (neurons.layer.tolist(), neurons.index.tolist(), neurons.delta, neurons.target)
    return list(zip(*columns, strict=True))


def files_of(folder: Path, name: str) -> dict[Pole, Path]:
    """The authors' files of a trait."""
    stem = folder / name.capitalize()
    return {Pole.HIGH: Path(f"{stem}_dict.json"), Pole.LOW: Path(f"{stem}_reversed_dict.json")}


def load_time(load: Callable[[], object]) -> str:
    """Median and 95th percentile in milliseconds, after one call that is not counted."""
    load()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        load()
        times.append(1000 * (time.process_time() - began))
    return f"{statistics.median(times):.1f} [{np.percentile(times, 95):.1f}]"


if __name__ == "__main__":
    main()
