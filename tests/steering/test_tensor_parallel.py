"""transformers' tensor parallelism over two processes: each steers its share, and the logits are one process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensor_parallel_process import SPECS, adapter_for, results
from transformers import LlamaForCausalLM

TESTS = Path(__file__).parent.parent


def two_processes(model: Path, output: Path) -> None:
    # The processes agree on a port of their own.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", str(TESTS / "tensor_parallel_process.py")]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [*command, str(model), str(output)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=output.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_are_one(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    tiny_llama.save_pretrained(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    expected = results(model, adapter_for(model))
    two_processes(tmp_path / "model", tmp_path / "found.safetensors")
    found = load_file(tmp_path / "found.safetensors")

    def apart(name: str) -> float:
        """How far from one process, in parts of the logits' spread."""
        return float((found[name] - expected[name]).abs().max() / expected[name].std())

    assert torch.equal(found["neutral"], found["plain"])
    assert torch.equal(found["unloaded"], found["plain"])
    assert torch.equal(found["mixed"][1], found["plain"][1])
    for name in ("steered", "mixed"):
        assert not torch.allclose(found[name], found["plain"], atol=0.1)
        # Sums are split alike, so rounding is of the same size; unsteered it may happen to be none.
        assert apart(name) <= max(4 * apart("plain"), 1e-6)
    assert torch.equal(found["tokens"], expected["tokens"])
    assert set(SPECS) < set(found)
