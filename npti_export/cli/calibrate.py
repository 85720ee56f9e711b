"""``npti-export calibrate``: the recommended dose of every pole, found by measurement and written into the adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from npti_export.cli import further, loading, material, options
from npti_export.cli.judging import Judging, judging
from npti_export.errors import NptiError


@click.command("calibrate", epilog="Example: npti-export calibrate adapters/Qwen--Qwen2.5-7B-Instruct --search")
@click.argument("adapter", type=click.Path(path_type=Path), required=False)
@options.trait
@material.trait_files
@options.model
@click.option("--search", is_flag=True, help="Try all methods and position modes, from the statistics beside it.")
@click.option(
    "--max-ratio",
    type=click.FloatRange(1.0),
    default=1.3,
    show_default=True,
    help="Largest perplexity ratio of a dose, to the end of its interval.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0.0, 1.0),
    default=0.05,
    show_default=True,
    help="Largest loss of fluency as a share of the judge's scale; where a judge rates it, this counts and no ratio.",
)
@further.tasks
@click.option(
    "--max-points",
    type=click.FloatRange(0.0, 100.0),
    default=2.0,
    show_default=True,
    help="Largest loss on any of the --tasks, in points of a hundred; a dose that loses more is brought down.",
)
@judging
@options.questions
@click.option(
    "--max-questions", type=click.IntRange(2), default=60, show_default=True, help="Questions a trait at most."
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the adapter here; into its own folder if not.")
@options.device
@options.dtype
@options.batch_size
@options.seed
@options.quiet
@options.as_json
def command(
    adapter: Path | None,
    traits: tuple[str, ...],
    trait_files: tuple[Path, ...],
    model_name: str | None,
    search: bool,
    max_ratio: float,
    max_loss: float,
    tasks: str | None,
    max_points: float,
    judging: Judging,
    questions_file: Path | None,
    max_questions: int,
    output: Path | None,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the recommended dose of each pole of an adapter, and write it.

    Every dose of a grid is tried on questions that identification did not ask. Recommended is the one with the largest
    effect that keeps within the budget; strength 1.0 means that dose afterwards. Scores of the old dose are removed.
    Sums of two personalities are checked too, and those that together cost too much are named. Answers are kept beside
    the adapter, so a run that was stopped goes on, and another budget asks little anew.
    """
    from dataclasses import replace

    own = material.own_traits(trait_files)
    benchmarks = further.task_names(tasks)
    if adapter is not None and not adapter.is_dir():
        raise NptiError(f"There is no folder {adapter}; calibrate writes into one: fetch it with npti-export pull.")
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import find_adapter
    from npti_export.evaluation.dose.recalibration import POSITIONS, own_questions, recalibrate, write_calibration
    from npti_export.evaluation.dose.recalibration import as_json as found_as_json
    from npti_export.evaluation.dose.sweep import most_search_answers, most_sweep_answers
    from npti_export.evaluation.dose.trial import DoseBudget
    from npti_export.evaluation.judges.cost import Cost, cost_ahead
    from npti_export.evaluation.protocol import EVALUATION_DECODING
    from npti_export.identification.elicit import read_transcripts
    from npti_export.identification.files import TraitFiles
    from npti_export.identification.fit import fit_ways, most_fitted
    from npti_export.identification.selection import read_measured, run_selects
    from npti_export.identification.selector import AUTO, Selector, ways_to_try
    from npti_export.steering.sites import base_model_id
    from npti_export.steering.thinking import Thinking
    from npti_export.traits import PersonalitySpec

    folder = adapter or Path(find_adapter(base_model_id(model)))
    loaded = PersonalityAdapter.from_pretrained(folder)
    names = list(dict.fromkeys(name.lower() for name in traits)) or list(loaded.traits)
    described = [material.trait_of(name, own) for name in names]
    for name in names:
        PersonalitySpec.parse(f"{name}+", known=loaded.traits)

    budget = judging.budget(quiet)
    judges = judging.judges_of(
        described,
        adapter=folder,
        model=model,
        tokenizer=tokenizer,
        output=output,
        batch_size=batch_size,
        seed=seed,
        budget=budget,
    )
    questions, ways = {}, {}
    for name in names:
        given = material.questions_of(name, own, questions_file)
        answered = judging.transcripts_of(name, folder)
        questions[name] = own_questions(given, answered, name, max_questions, seed)
        ways[name] = [[loaded.traits[name]]]
        if search:
            statistics, measured, _ = read_measured(TraitFiles(folder, name))
            has_stream = all(of_pole.stream is not None for of_pole in statistics.values())
            tried = ways_to_try(Selector(AUTO), loaded.base_model.num_layers, has_stream)
            ways[name] = run_selects(name, statistics, measured, tried)
    positions = (*POSITIONS, *(("answer",) if Thinking.of(tokenizer) else ())) if search else ()
    cost = Cost()
    for name in names:
        each = most_search_answers(ways[name], len(positions), 1) + most_sweep_answers(ways[name], 1)
        cost += cost_ahead(judges[name], questions[name], each)
    budget.check("Judging the doses", cost)
    if search:
        note = partial(loading.notice, quiet=quiet)
        for name in names:
            own_answers = read_transcripts(TraitFiles(folder, name).transcripts)
            with loading.stage(f"{name}: fit vectors", most_fitted(ways[name], len(own_answers)), quiet) as progress:
                ways[name] = fit_ways(model, tokenizer, ways[name], own_answers, batch_size, progress, note)

    target = output or folder
    found = recalibrate(
        model,
        tokenizer,
        loaded,
        ways,
        positions,
        questions,
        judges,
        replace(EVALUATION_DECODING, batch_size=batch_size),
        DoseBudget(max_ratio, max_loss),
        partial(loading.stage, quiet=quiet),
        keep_in=target / "statistics" / "calibration.answers.jsonl",
    )
    if benchmarks:
        from npti_export.evaluation.dose.capability_budget import SHARES, within_capability

        with loading.stage("benchmarks", len(SHARES) * (2 * len(names) + 1), quiet) as progress:
            steered, capable = within_capability(
                model, tokenizer, found.adapter, names, benchmarks, max_points, batch_size, lambda: progress(1)
            )
        found = replace(found, adapter=steered, capable=capable)
    found.adapter.save_pretrained(target)
    write_calibration(target, found)
    for warning in found.warnings:
        loading.notice(f"Note: {warning}", quiet)
    rows = {
        f"{name}{pole.sign}": found_as_json(found, name, pole) for name, poles in found.swept.items() for pole in poles
    }
    if as_json:
        sums = [
            {"personality": cost.personality, "ratio": cost.ratio.mean, "overdoses": cost.overdoses}
            for cost in found.sums
        ]
        said = {"folder": str(target), "poles": rows, "sums": sums}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    for personality, row in rows.items():
        rank = "none" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}"
        tips = "nowhere" if row["tips_over"] is None else f"beyond γ {row['tips_over']:g}"
        click.echo(f"{personality:20} {row['reason']}")
        click.echo(f"{'':20} rank correlation of dose and effect {rank}; tips over {tips}")
    for of_pole in found.capable:
        kept = "" if of_pole.share == 1.0 else f"; brought down to {of_pole.share:.0%} of that dose"
        short = "" if of_pole.affordable else f", more than {max_points:g}"
        click.echo(f"{of_pole.personality:20} loses {of_pole.points:.1f} points on {of_pole.task}{short}{kept}")
    click.echo(f"Written to {target}")
