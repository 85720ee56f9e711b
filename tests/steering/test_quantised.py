"""8- and 4-bit weights of bitsandbytes and torchao, on the CPU: exact beside hooks on the same quantised weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quantised import check, quantised
from transformers import BitsAndBytesConfig

TESTS = Path(__file__).parent.parent
TORCHAO = Path(sys.prefix) / "torchao"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4_bit(kind: str, dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes")
    check(quantised(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind), dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_bitsandbytes_8_bit(threshold: float, dtype: torch.dtype) -> None:
    """With a threshold, a column in which any row has a large number is computed otherwise, for all rows."""
    pytest.importorskip("bitsandbytes")
    model = quantised(BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold), dtype)
    check(model, rows_alone=threshold == 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_torchao(bits: int, tmp_path: Path) -> None:
    if not TORCHAO.exists():
        pytest.skip("torchao is not there; make setup puts it beside the environment")
    paths = os.pathsep.join([str(TORCHAO), str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "quantised.py"), f"torchao-{bits}"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr[-3000:]
