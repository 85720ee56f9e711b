"""Result files in the form in which the authors of NPTI published theirs, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS, WIDTH = 3, 48
"""The shape of the model that they are of: that of the fixture ``tiny_llama``."""
HIGH = {
    "1": [[1, 40, 0.7525893449783325, 0.81, 0.3700000047683716], [1, 7, 0.1, 0.5, 1]],
    "0": [[0, 47, 0.3, 0.31, 2.5]],
    "2": [],
}
LOW = {"2": [[2, 0, 1, 1, 4.239999771118164], [2, 3, 0.25, 0.5, 0.04]], "1": [[1, 41, 0.11, 0.2, 0.3]]}
Layers = dict[str, list[list[Any]]]


def write_results(folder: Path, name: str = "Agreeableness", high: Layers = HIGH, low: Layers = LOW) -> Path:
    """Writes both files of a trait into a folder and returns it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_dict.json").write_text(json.dumps(high, indent=4), encoding="utf-8")
    (folder / f"{name}_reversed_dict.json").write_text(json.dumps(low, indent=4), encoding="utf-8")
    return folder
