"""Command lines as they stand in documents and help texts, held against the options that there are; nothing is run."""

from __future__ import annotations

import shlex

import click

from npti_export.cli import cli


def check_command_line(line: str) -> None:
    """Parses the line as the command would.

    Args:
        line: What stands behind ``npti-export``.

    Raises:
        click.UsageError: If there is no such command or option, or a value is not one that it takes.
    """
    name, *arguments = shlex.split(line, comments=True)
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        raise click.UsageError(f"there is no command {name!r}")
    with command.make_context(name, arguments):
        pass
