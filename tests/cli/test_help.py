"""Help: quick because torch is not imported, and with an example in every command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from npti_export.cli import COMMANDS, cli


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from npti_export.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False False"
    for name, line in COMMANDS.items():
        assert f"{name} " in shown
        assert line.split(".")[0][:40] in shown


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: npti-export {name}" in result.output
