"""The wheel, installed alone in an environment of its own, does the main job."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_installed_alone_runs_the_demo(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "npti_export/demo/npti-demo/model.safetensors" in names
    assert "npti_export/demo/adapters/npti-demo/config.json" in names
    assert not [name for name in names if name.startswith(("tests/", "eval/"))]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([binaries / "pip", "install", "--quiet", "torch==2.13.0"], check=True)
    subprocess.run([binaries / "pip", "install", "--quiet", str(wheel)], check=True)
    home = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    inspected = subprocess.run(
        [binaries / "npti-export", "inspect"], cwd=tmp_path, env=home, capture_output=True, text=True, check=True
    )
    assert "openness+" in inspected.stdout
    shown = subprocess.run(
        [binaries / "npti-export", "demo"], cwd=tmp_path, env=home, capture_output=True, text=True, check=True
    ).stdout
    assert "persona prompt" in shown
    assert "the same as before" in shown
