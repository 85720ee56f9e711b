"""Help: quick because torch is not imported, and with an example in every command."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from command_lines import check_command_line

from npti_export.cli import AS_IT_STANDS, COMMANDS, cli


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
def test_every_command_has_an_example_that_can_be_copied(name: str) -> None:
    """On one line also in a narrow terminal, and with options that there are."""
    result = CliRunner().invoke(cli, [name, "--help"], terminal_width=60)
    assert result.exit_code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    examples = str(command.epilog).removeprefix(AS_IT_STANDS).splitlines()
    assert examples
    for example in examples:
        assert example in result.output
        assert example.startswith(f"Example: npti-export {name} ")
        check_command_line(example.removeprefix("Example: npti-export "))
