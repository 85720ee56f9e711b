"""``inspect``: the table, the JSON and the picture of an adapter agree with its files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_by_hand import base_model, every_method, trait_record

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.plot import plot_adapter
from npti_export.cli import main
from npti_export.errors import NptiError


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def adapter() -> PersonalityAdapter:
    """One trait that a judge scored at both poles, and one at γ 0.7 whose high pole has a dose curve."""
    scores = {"local": {"effect": [0.5, 0.4, 0.6], "fluency": [1.25, 1.2, 1.3], "questions": 92}}
    traits = [trait_record("openness", 1, scores=scores), trait_record("wit", 5)]
    return PersonalityAdapter(base_model(), {trait.name: trait for trait in traits})


@pytest.fixture
def folder(adapter: PersonalityAdapter, tmp_path: Path) -> Path:
    adapter.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run([str(folder)], capsys)
    assert (code, err) == (0, "")
    first, second, *rest = out.splitlines()
    assert first == f"{folder}: personalities of someone/small-chat"
    assert second == "3 layers, 36 neurons, type llama, revision unknown, fingerprint cccccccccccc"
    rows = {
        cells[1]: cells[2:-1] for cells in ([c.strip() for c in line.split("│")] for line in rest) if len(cells) > 1
    }
    assert rows == {
        "openness+": ["4", "0.7", "local", "+0.50 [+0.40, +0.60]", "1.25 [1.20, 1.30]"],
        "openness-": ["3", "0.7", "local", "+0.50 [+0.40, +0.60]", "1.25 [1.20, 1.30]"],
        "wit+": ["4", "0.7", "dose curve", "+0.31", "1.25"],
        "wit-": ["3", "0.7", "not measured", "", ""],
    }
    assert "γ not calibrated on this model: openness-, wit-" in rest
    for name in ("openness", "wit"):
        data = (folder / f"{name}.safetensors").read_bytes()
        at = rest.index(
            f"{name}.safetensors: {len(data):,} bytes, identified, 60 answers, split-half reliability 0.987"
        )
        assert rest[at + 1] == f"  SHA-256 {hashlib.sha256(data).hexdigest()}"
    digest = json.loads((folder / "config.json").read_bytes())["config_sha256"]
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert rest[-2:] == [f"config.json, SHA-256 {digest}", f"{total:,} bytes in all"]


def test_no_name_is_cut_off_in_a_narrow_terminal(adapter: PersonalityAdapter, tmp_path: Path) -> None:
    record = replace(adapter.traits["openness"], name="conscientiousness")
    PersonalityAdapter(base_model(), {"conscientiousness": record}).save_pretrained(tmp_path / "narrow")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = ["-c", "from npti_export.cli import main; main()", "inspect", str(tmp_path / "narrow")]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, *program], stdout=theirs, env=environment | {"TERM": "dumb"})
    os.close(theirs)
    shown = read_to_the_end(ours)
    assert process.wait() == 0
    table = [line for line in shown.splitlines() if line.startswith("│")]
    assert all(len(line) <= 80 for line in table)
    for sign in "+-":
        assert f"│ conscientiousness{sign} │" in shown
    assert "…" not in "".join(table)


def read_to_the_end(terminal: int) -> str:
    """What was written to a terminal until nobody had it open any more, which reads as an error."""
    read = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:
        while data := file.read(4096):
            read += data
    return read.decode()


def test_json_is_the_config_with_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run([str(folder), "--json"], capsys)
    found = json.loads(out)
    assert err == ""
    assert found.pop("adapter") == str(folder)
    assert found.pop("bytes") == sum(path.stat().st_size for path in folder.iterdir())
    for name in ("openness", "wit"):
        data = (folder / f"{name}.safetensors").read_bytes()
        assert found["traits"][name].pop("bytes") == len(data)
        assert found["traits"][name]["sha256"] == hashlib.sha256(data).hexdigest()
    assert found == json.loads((folder / "config.json").read_bytes())


def test_what_a_terminal_would_obey_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither control characters nor rich's own markup get through from an adapter that somebody else made."""
    scores = {"[red]j\x1b[31m": {"effect": [0.5, 0.4, "high"], "fluency": "cheap"}, "x": 3}
    record = trait_record("openness", 1, scores=scores)
    PersonalityAdapter(base_model(), {"openness": record}).save_pretrained(tmp_path / "odd")
    code, out, _ = run([str(tmp_path / "odd")], capsys)
    assert code == 0
    assert "\x1b" not in out
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│ openness" in line]
    assert [row[4:7] for row in rows] == [["[red]j�[31m", "not measured", "not measured"]] * 2


def test_numbers_that_no_float_holds_and_benchmarks_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON's whole numbers have no bound; where only benchmarks ran, the dose curve is still what was measured."""
    huge = {"local": {"effect": [10**400, 0, 1], "fluency": [1.0, -(10**400), 2]}}
    benchmarks = {"lm-eval": {"capability": {"gsm8k": [-7.0, -9.0, -5.0]}}}
    for scores, shown in (
        (huge, ["local", "not measured", "not measured"]),
        (benchmarks, ["dose curve", "+0.31", "1.25"]),
    ):
        record = trait_record("openness", 1, scores=scores)
        PersonalityAdapter(base_model(), {"openness": record}).save_pretrained(tmp_path)
        code, out, _ = run([str(tmp_path)], capsys)
        assert code == 0
        rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│ openness+" in line]
        assert [row[4:7] for row in rows] == [shown]


def test_picture_is_a_png_in_its_place(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    picture = tmp_path / "picture.png"
    code, out, _ = run([str(folder), "--plot", str(picture)], capsys)
    assert code == 0
    assert out.endswith(f"Picture written to {picture}\n")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(picture)[..., :3].reshape(-1, 3)
    for colour in ("#2b6cb0", "#c05621"):
        rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        assert (np.abs(pixels - rgb).max(axis=1) < 0.01).mean() > 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "picture.png"]


def test_picture_shows_what_the_adapter_holds(adapter: PersonalityAdapter) -> None:
    axes = plot_adapter(adapter).axes
    assert len(axes) == 4
    for row, trait in enumerate(adapter.traits.values()):
        bars, steps = axes[2 * row].containers, axes[2 * row + 1].patches
        for sign, record, container, stairs in zip((1, -1), trait.poles.values(), bars, steps, strict=True):
            by_layer = [sum(record.neurons.layer == layer) for layer in range(3)]
            assert [bar.get_height() for bar in container] == [sign * count for count in by_layer]
            assert stairs.get_data().values.sum() == len(record.neurons)
            edges = stairs.get_data().edges
            assert edges[0] == 0
            assert edges[-1] >= record.neurons.delta.max()
        assert axes[2 * row].get_title("left") == f"{trait.name}+   4 neurons"
        assert axes[2 * row].get_title("right") == f"{trait.name}-   3 neurons"


def test_picture_shows_neurons_of_every_method() -> None:
    """Those that are moved by their mean difference may have a delta below 0."""
    adapter = every_method()
    axes = plot_adapter(adapter).axes
    for row, trait in enumerate(adapter.traits.values()):
        for record, stairs in zip(trait.poles.values(), axes[2 * row + 1].patches, strict=True):
            assert stairs.get_data().values.sum() == len(record.neurons)


def test_picture_that_cannot_be_drawn_or_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run([str(folder), "--plot", str(tmp_path / "nowhere" / "x.png")], capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be written" in err
    (tmp_path / "folder.png").mkdir()
    code, _, err = run([str(folder), "--plot", str(tmp_path / "folder.png")], capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "folder.png"]
    code, _, err = run([str(folder), "--plot", "x.pdf"], capsys)
    assert code == 2
    assert "'x.pdf' does not end in .png" in err
    with pytest.raises(NptiError, match="no traits"):
        plot_adapter(PersonalityAdapter(base_model(), {}))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as where it is not installed
    code, out, err = run([str(folder), "--plot", str(tmp_path / "y.png")], capsys)
    assert (code, out) == (1, "")
    assert "pip install 'npti-export[plot]'" in err


def test_matplotlib_is_not_imported_unless_asked_for(folder: Path) -> None:
    code = (
        "import sys; from npti_export.cli import main\n"
        f"try: main(['inspect', {str(folder)!r}])\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print('matplotlib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"
