"""``npti-export identify``: from a trait to an adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from npti_export.cli import loading, material, options
from npti_export.cli.machine import Machine, machine
from npti_export.cli.thresholds import selector

if TYPE_CHECKING:
    from npti_export.identification.selector import Selector


@click.command("identify", epilog="Example: npti-export identify --trait openness --model Qwen/Qwen2.5-7B-Instruct")
@material.traits
@machine
@material.output
@material.asked
@click.option(
    "--reliability",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Split-half reliability of delta at which no more questions are asked, from 30 on; 1 asks all.",
)
@selector
@click.option(
    "--no-calibrate",
    is_flag=True,
    help="Leave out finding the dose: gamma is what the method starts from, marked as not calibrated.",
)
@options.as_json
def command(
    wanted: material.Wanted,
    machine: Machine,
    output: Path | None,
    asked: material.Asked,
    reliability: float,
    selector: Selector,
    no_calibrate: bool,
    as_json: bool,
) -> None:
    """Find the neurons of a trait in a chat model and write the adapter.

    The model answers questions in character at both poles, until two halves of the answers agree; the neurons that fire
    more at one pole are kept; the dose of each pole, and with --method auto what moves it, is found on questions held
    back, unless --no-calibrate leaves it to a later run. Transcripts and statistics stay beside the adapter, and a run
    that was stopped, even killed, goes on. The commands elicit, measure and select do the first three steps one by one.
    """
    if no_calibrate:
        selector.check_needs_no_dose()
    readers = asked.readers(wanted)
    endpoint = asked.endpoint(machine.batch_size)
    model, tokenizer = machine.load()

    from npti_export.identification.memory import memory_line
    from npti_export.pipeline import identify
    from npti_export.steering.sites import find_sites
    from npti_export.traits import Pole

    loading.notice(memory_line(find_sites(model)), machine.says_nothing)
    found = identify(
        model,
        tokenizer,
        wanted.names,
        output,
        **readers,
        max_questions=asked.max_questions,
        reliability=reliability,
        selector=selector,
        calibrated=not no_calibrate,
        batch_size=machine.batch_size,
        seed=asked.seed,
        endpoint=endpoint,
        transcripts=asked.transcripts_file,
        stage=partial(loading.stage, quiet=machine.says_nothing),
        warn=lambda message: loading.notice(f"Note: {message}", machine.says_nothing),
    )
    rows = []
    for name in wanted.names:
        trait, measured = found.adapter.traits[name], found.measurements[name]
        for pole, record in trait.poles.items():
            made, faults = trait.identification, measured.answers[pole]
            rows.append(
                {
                    "personality": f"{name}{pole.sign}",
                    "method": record.method.name,
                    "neurons": len(record.neurons),
                    "gamma": record.gamma,
                    "calibrated": record.calibrated,
                    "effect": next((p.effect for p in record.dose_curve if p.gamma == record.gamma), None),
                    "fluency": next((p.fluency for p in record.dose_curve if p.gamma == record.gamma), None),
                    "questions": measured.curve[-1].questions,
                    "reliability": made.split_half_reliability,
                    "selection_overlap": (made.selection_overlap or {}).get(str(pole)),
                    "delta_margin": (made.delta_margin or {}).get(str(pole)),
                    "judge_auc": round(found.auc[name], 4),
                    "reason": found.reasons[name][pole],
                    "answers": {
                        "total": faults.answers,
                        "empty": faults.empty,
                        "refusing": faults.refusing,
                        "repeating": faults.repeating,
                        "broken_off": faults.broken_off,
                    },
                }
            )
    if as_json:
        click.echo(json.dumps({"folder": str(found.folder), "poles": rows}, indent=2))
        return
    for row in rows:
        dose = f"gamma {row['gamma']:<4}   "
        if row["calibrated"]:
            dose += f"effect {row['effect']:+.2f} at {row['fluency']:.2f}x perplexity   "
        click.echo(
            f"{row['personality']:20} {row['method']:10} {row['neurons']:6} neurons   {dose}"
            f"reliability {row['reliability']:.3f} with {row['questions']} questions   judge AUC {row['judge_auc']:.2f}"
        )
        if row["calibrated"]:
            click.echo(f"  {row['reason']}")
    if no_calibrate:  # the same at both poles
        for name in wanted.names:
            click.echo(f"{name}: {found.reasons[name][Pole.HIGH]}")
    click.echo(f"Written to {found.folder}")
