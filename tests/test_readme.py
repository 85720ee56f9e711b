"""The README is true: its Python runs on the bundled model, its commands and make targets are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from npti_export.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("bundled_adapter")
def test_python_blocks_run(demo_model_folder: Path) -> None:
    """Blocks marked ``python`` run one after the other; ``py`` marks the one that needs a real model."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder)
    names: dict[str, object] = {"model": model}
    exec(blocks[0], names)
    names["personality"].unload()  # type: ignore[attr-defined]
    exec(blocks[1], names)
    assert not any(type(module).__name__ == "SteeredActivation" for module in model.modules())


def test_real_model_example_is_python() -> None:
    (block,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    compile(block, "README.md", "exec")


def test_commands_and_targets_exist() -> None:
    for name in COMMANDS:
        assert f"npti-export {name}" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_measured_effect_is_the_recorded_one() -> None:
    """The table in the README is that of eval/results, adapter rows only."""
    recorded = (ROOT / "eval" / "results" / "demo_adapter.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- effect:begin -->\n(.*?)<!-- effect:end -->", README, re.DOTALL)
    assert table is not None
    rows = [line for line in table[1].splitlines() if line.startswith("| `")]
    assert len(rows) == 10
    for row in rows:
        personality, effect, fluency = (row.split("|")[column].strip().strip("`") for column in (1, 2, 5))
        assert f"| {personality} | adapter |" in recorded
        line = next(x for x in recorded.splitlines() if x.startswith(f"| {personality} | adapter |"))
        assert effect in line
        assert f"| {fluency} [" in line
