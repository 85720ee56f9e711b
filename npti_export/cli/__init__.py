"""The command line: one file a command, each imported only when it is called, so that ``--help`` needs no torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from npti_export import __version__
from npti_export.errors import NptiError

COMMANDS = {
    "identify": "Find the neurons of a trait in a chat model and write the adapter.",
    "elicit": "First step of identify alone: have the model answer in character.",
    "measure": "Second step alone: count what every neuron does on those answers.",
    "select": "Third step alone: choose neurons, by other thresholds too.",
    "new-trait": "Write and check a file for a trait of your own.",
    "generate": "Answer one prompt with a personality.",
    "chat": "Talk to a model with a personality.",
    "serve": "Serve a model over HTTP, a personality per request.",
    "eval": "Measure whether a personality works, beside its controls.",
    "calibrate": "Find the recommended dose of each pole and write it.",
    "import-npti": "Turn published NPTI results into an adapter.",
    "inspect": "Show what an adapter holds.",
    "explain": "Put an adapter's neurons into words.",
    "push": "Put an adapter on the Hugging Face Hub.",
    "pull": "Fetch an adapter from the Hugging Face Hub.",
    "demo": "Run all of it on the bundled model.",
}
"""Commands in the order in which one meets them, with the line that ``--help`` shows."""

AS_IT_STANDS = "\b\n"
"""Before an epilog, so that click breaks none of its lines (it breaks at hyphens too) and the example can be copied."""


class _LazyGroup(click.Group):
    """Imports a command's file when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"npti_export.cli.{cmd_name.replace('-', '_')}").command
        if not isinstance(command, click.Command):
            return None
        if command.epilog and not command.epilog.startswith(AS_IT_STANDS):
            command.epilog = AS_IT_STANDS + command.epilog
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="npti-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Give a chat model a personality: find its neurons, keep them as a small adapter, switch a running model.

    \b
    npti-export demo                                   everything on the bundled model, in a few minutes
    npti-export identify --trait openness              find neurons, write adapters/<model>/
    npti-export generate "How was your weekend?" --personality extraversion+ --compare
    """


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line: errors are one sentence on stderr, with exit code 1 (2 for wrong usage)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        cli.main(arguments, prog_name="npti-export", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NptiError as error:
        if "--debug" in arguments:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        # What is lost differs: only some commands keep their work as they go.
        going_on = "identify, elicit, measure, calibrate and eval --output go on from where they were."
        click.echo(f"\nStopped; nothing is left half-written. When run again, {going_on}", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
