"""From command to adapter: the whole time of ``npti-export identify`` and of the published way, at what selections.

    python eval/speed/from_command_to_adapter.py                     # npti-demo on the CPU, extraversion, three rounds

Every run is a process of its own with an empty folder; the four take turns. Ours as it is stops when two halves of the
answers agree and ends with a dose that was measured; ours with ``--reliability 1`` asks what the published way
(published_identification.py) asks, which ends with a constant, as ours does with ``--no-calibrate`` too: these two are
the fair pair. Writes eval/results/speed_whole_MODEL_DEVICE.md and .json.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import transformers
from alike import Alike, choosing_took, compared
from published_identification import ALL_QUESTIONS

from npti_export.adapter.adapter import read_base_model
from npti_export.cli import options
from npti_export.traits import TRAITS

RESULTS = Path(__file__).parent.parent / "results"
OURS, OURS_ALL, PUBLISHED = "ours, stops by itself", "ours, `--reliability 1`", "published"
OURS_NO_DOSE = "ours, `--reliability 1 --no-calibrate`"


@dataclass(frozen=True)
class Took:
    """Where the seconds of one run went.

    Args:
        start: From the command until the model is loaded.
        ask: From then until all answers are there and counted.
        finish: From then until the process has ended: neurons are chosen and written, and ours finds their dose unless
            it is left out.
        whole: All of it.
        processor: What the process and its threads had of the processor in all.
    """

    start: float
    ask: float
    finish: float
    whole: float
    processor: float

    @property
    def counted(self) -> float:
        """From the command until all answers are there and counted."""
        return self.start + self.ask


@click.command(help=__doc__)
@options.model
@click.option("--device", default="cpu", show_default=True)
@click.option("--trait", type=click.Choice(list(TRAITS)), default="extraversion", show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of the CPU.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--questions",
    type=click.IntRange(5),
    default=ALL_QUESTIONS,
    help="Where not all are asked, as a trial of the script.",
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(
    model_name: str | None, device: str, trait: str, threads: int, rounds: int, questions: int, output: Path
) -> None:
    here = [sys.executable, "-m", "npti_export", "identify"]
    there = [sys.executable, str(Path(__file__).with_name("published_identification.py"))]
    common = ["--trait", trait, "--device", device, *(["--model", model_name] if model_name else [])]
    ask_all = ["--reliability", "1", "--max-questions", str(questions)]
    commands = {
        OURS: [*here, *common],
        OURS_ALL: [*here, *common, *ask_all],
        OURS_NO_DOSE: [*here, *common, *ask_all, "--no-calibrate"],
        PUBLISHED: [*there, *common, "--questions", str(questions)],
    }
    took: dict[str, list[Took]] = {way: [] for way in commands}
    with TemporaryDirectory() as scratch:
        folders: dict[str, Path] = {}
        for number in range(rounds):
            first = number % len(commands)
            for way in [*commands][first:] + [*commands][:first]:
                folders[way] = Path(scratch) / f"{len(took[way])} {way}"
                took[way].append(run([*commands[way], "--output", str(folders[way])], threads))
                click.echo(f"Round {number + 1}, {way}: {took[way][-1].whole:.0f} s", err=True)
        ours = (OURS, OURS_ALL, OURS_NO_DOSE)
        alike = [row for way in ours for row in compared(way, trait, folders[way], folders[PUBLISHED])]
        choosing = choosing_took(trait, folders[OURS], folders[PUBLISHED])
        base_model = read_base_model(folders[OURS])
    about = {
        "model": base_model.id,
        "neurons": base_model.num_neurons,
        "trait": trait,
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()}, {threads} thread(s)",
        "rounds": rounds,
        "seconds_of_choosing": choosing,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    record = {
        "about": about,
        "took": {way: [asdict(of_round) for of_round in of_way] for way, of_way in took.items()},
        "alike": [asdict(row) for row in alike],
    }
    output.mkdir(parents=True, exist_ok=True)
    name = f"speed_whole_{base_model.id.removeprefix('npti-').replace('/', '--')}_{device.partition(':')[0]}"
    (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / f"{name}.md").write_text(report(about, took, alike))
    click.echo((output / f"{name}.md").read_text())


def run(command: list[str], threads: int) -> Took:
    """Runs a command to its end; where its stages end is read off the lines that it prints.

    Args:
        command: With all arguments.
        threads: Of the CPU.

    Raises:
        click.ClickException: If it fails or does not print these lines.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    used, began = _processor_of_children(), time.perf_counter()
    loaded = asked = None
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Counting "):
                loaded = time.perf_counter()
            elif ": ask and " in line and ": done in " in line:
                asked = time.perf_counter()
    ended = time.perf_counter()
    if process.returncode or loaded is None or asked is None:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines)}")
    processor = _processor_of_children() - used
    return Took(loaded - began, asked - loaded, ended - asked, ended - began, processor)


def _processor_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(about: dict[str, Any], took: dict[str, list[Took]], alike: list[Alike]) -> str:
    """The tables as Markdown."""
    versions = ", ".join(f"{library} {version}" for library, version in about["versions"].items())
    choosing = about["seconds_of_choosing"]
    lines = [
        "# From command to adapter",
        "",
        f"Made by `python eval/speed/from_command_to_adapter.py` on {about['model']} ({about['neurons']:,} neurons), "
        f"{about['trait']}, {about['device']}.",
        f"{versions}. Every run is a process of its own with an empty folder.",
        "",
        f"Seconds, median of {about['rounds']} round(s) in which all take turns [least, most]. *Counted* is from the "
        "command until all answers",
        "are there and counted. *Finish* is what follows: neurons are chosen and written (choosing alone takes "
        f"{choosing['ours']:.2f} s,",
        f"the published way's {choosing['published']:.2f} s), and ours finds the dose on 30 questions held back, where "
        "the published way takes a",
        "constant. Ours with `--no-calibrate` takes one too, at an equal selection: these two are the fair pair. "
        "*Processor* is what",
        "the process had of it.",
        "",
        "| | questions a pole | start | ask and count | finish | counted | whole | processor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    answers = {row.way: row.answers for row in alike} | {PUBLISHED: alike[0].published_answers}
    for way, of_way in took.items():
        cells = []
        for name in ("start", "ask", "finish", "counted", "whole", "processor"):
            seconds = [getattr(of_round, name) for of_round in of_way]
            cells.append(f"{statistics.median(seconds):.1f} [{min(seconds):.1f}, {max(seconds):.1f}]")
        lines.append(f"| {way} | {answers[way]} | {' | '.join(cells)} |")
    lines += [
        "",
        "## How alike the selections are",
        "",
        "Ours beside the published one, both by the paper's thresholds: overlap is the share that both select of the",
        "neurons that either does, r the correlation of delta over all neurons. Where the answers are the same to the",
        "token, what is left is what a batch of another shape rounds to the other side of 0, and targets in the first",
        "bin of 0.01, which the published histogram cannot tell from none. It ends at 3: the last column counts the",
        "neurons of ours whose target is above that.",
        "",
        "| | pole | same answers | neurons | published | overlap | r | largest difference of delta | beyond 3 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in alike:
        lines.append(
            f"| {row.way} | {row.pole} | {row.same_answers} of {row.answers} | {row.neurons} | {row.published_neurons} "
            f"| {row.overlap:.3f} | {row.correlation:.4f} | {row.difference:.4f} | {row.beyond} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
