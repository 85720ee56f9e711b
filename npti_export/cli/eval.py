"""``npti-export eval``: personalities beside the unsteered model, the placebo, prompts and whatever else is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import further, loading, material, options
from npti_export.cli.judging import Judging, judging
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.evaluation.results import Evaluation, PersonalityResult
    from npti_export.identification.elicit import Transcript
    from npti_export.traits.material import Question


@click.command(
    "eval",
    epilog="Example: npti-export eval --personality openness+\n"
    "Example: npti-export eval --personality openness+ --judge openai:gpt-4o-2024-08-06",
)
@click.option(
    "--personality", help="Such as openness+; several terms are evaluated one by one; all poles unless given."
)
@judging
@options.model
@options.adapter
@click.option("--against", help="Another adapter of the same model, a folder or Hub repository, to compare with.")
@click.option(
    "--lora", type=click.Path(path_type=Path), help="A PEFT folder made for the personality, to compare with."
)
@click.option(
    "--residual", is_flag=True, help="Compare with the residual difference alone; needs the statistics of identify."
)
@click.option(
    "--dose", "doses", multiple=True, type=click.FloatRange(0, min_open=True), help="Multiple of the dose to try too."
)
@click.option(
    "--bleed-questions", type=click.IntRange(0), default=0, show_default=True, help="Asked of each other trait too."
)
@material.trait_files
@options.questions
@options.personas
@click.option("--max-questions", type=click.IntRange(2), help="Ask at most so many test questions of a trait.")
@further.tasks
@further.inventory
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write the report here, keep answers, and resume from them."
)
@click.option("--card", is_flag=True, help="Put the figures into the adapter's config and model card.")
@options.device
@options.dtype
@options.batch_size
@options.seed
@options.quiet
@options.as_json
def command(
    personality: str | None,
    judging: Judging,
    model_name: str | None,
    adapter: str | None,
    against: str | None,
    lora: Path | None,
    residual: bool,
    doses: tuple[float, ...],
    bleed_questions: int,
    trait_files: tuple[Path, ...],
    questions_file: Path | None,
    personas_file: Path | None,
    max_questions: int | None,
    tasks: str | None,
    inventory_file: Path | None,
    output: Path | None,
    card: bool,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure whether personalities work, beside their controls.

    The same test questions go to the unsteered model, the adapter, the placebo (as many random neurons), and the model
    with the trait, with personas or with examples in its prompt, also together with the adapter. Judges score the
    answers; every figure comes with its 95 % interval over questions, every difference is paired.
    """
    from dataclasses import replace

    from npti_export.evaluation.inventory_file import read_inventory
    from npti_export.traits import PersonalitySpec, Pole, Term

    spec = PersonalitySpec.parse(personality)
    if personality is not None and (spec.is_neutral or any(term.strength == 0.0 for term in spec.terms)):
        raise NptiError(f"{personality!r} steers nothing, or not in every term; name personalities such as openness+.")
    own = material.own_traits(trait_files)
    for term in spec.terms:
        material.trait_of(term.trait, own)
    if output and output.exists() and not output.is_dir():
        raise NptiError(f"{output} is a file; --output names a folder.")
    further.check_pictures(output)
    benchmarks = further.task_names(tasks)
    inventory = read_inventory(inventory_file) if inventory_file else None
    if lora is not None and len(spec.terms) != 1:
        raise NptiError("--lora compares with a fine-tune for one personality; name that one with --personality.")
    if card and any(term.strength != 1.0 for term in spec.terms):
        raise NptiError(f"--card is about the recommended dose, and {personality!r} has another; give no strength.")
    if card and adapter is not None and not Path(adapter).is_dir():
        raise NptiError(f"--card writes into the adapter, and {adapter} is no folder; fetch it with npti-export pull.")
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import find_adapter
    from npti_export.evaluation.answering import Asker
    from npti_export.evaluation.judges.cost import Cost, cost_ahead
    from npti_export.evaluation.methods import Rivals, methods_of
    from npti_export.evaluation.protocol import EVALUATION_DECODING
    from npti_export.evaluation.side_by_side import Exam, Subject, count_answers, evaluate
    from npti_export.identification.questions import balanced
    from npti_export.steering.sites import base_model_id

    folder = Path(adapter or find_adapter(base_model_id(model)))
    loaded = PersonalityAdapter.from_pretrained(adapter or folder)
    terms = loaded.personality(spec).terms or tuple(Term(name, pole) for name in loaded.traits for pole in Pole)
    other = None if against is None else PersonalityAdapter.from_pretrained(against)
    names = list(loaded.traits) if bleed_questions else list(dict.fromkeys(term.trait for term in terms))

    budget = judging.budget(quiet)
    described = {name: material.trait_of(name, own) for name in names}
    questions = {
        name: balanced(material.test_questions_of(name, own, questions_file), seed)[:max_questions] for name in names
    }
    judges = judging.judges_of(
        list(described.values()),
        adapter=folder,
        model=model,
        tokenizer=tokenizer,
        output=output,
        batch_size=batch_size,
        seed=seed,
        budget=budget,
    )
    rivals = {}
    for name in dict.fromkeys(term.trait for term in terms):
        said = judging.transcripts_of(name, folder)
        alone = None
        if residual:
            given = material.questions_of(name, own, None)
            alone = _residual_alone(model, tokenizer, folder, name, said, given, batch_size, seed, quiet)
        rivals[name] = Rivals(tuple(said), alone, other, lora)
    exam = Exam(questions, judges, bleed_questions, tuple(sorted(set(doses) - {1.0})), seed)
    subjects = []
    for term in terms:
        personas = material.personas_of(term.trait, own, personas_file)
        methods = methods_of(term, described[term.trait], loaded, personas, rivals[term.trait], seed)
        subjects.append(Subject(term, methods))
    each = -(-count_answers(subjects, exam) // sum(map(len, questions.values())))
    budget.check("Judging", sum((cost_ahead(judges[name], exam.texts(name), each) for name in names), Cost()))

    keep_in = output / "answers.jsonl" if output else None
    asker = Asker(model, tokenizer, replace(EVALUATION_DECODING, batch_size=batch_size), keep_in)
    called = adapter or folder.name
    found = evaluate(asker, subjects, exam, called, "npti-export eval", partial(loading.stage, quiet=quiet))
    steered = [str(term) for term in terms]
    beside = further.sections(model, tokenizer, loaded, steered, benchmarks, inventory, batch_size, quiet)
    found = replace(found, sections={**found.sections, **beside})
    if output:
        from npti_export.evaluation.report.report_files import write_report

        write_report(output, found)
    if card:
        from npti_export.evaluation.report.card_scores import with_scores

        with_scores(loaded, found).save_pretrained(folder)
        loading.notice(f"The figures stand in {folder} now.", quiet)
    if as_json:
        figures = [summary(found, result) for result in found.personalities]
        asked_for = {name: beside[name] for name in ("capability", "inventory") if name in beside}
        click.echo(json.dumps({"personalities": figures, **asked_for} if asked_for else figures, indent=2))
    else:
        print_evaluation(found)
        further.print_sections(beside)


def print_evaluation(found: Evaluation) -> None:
    """The table, what scored it, and how the adapter compares."""
    from rich.table import Table

    from npti_export.evaluation.report.table import columns, judge_lines, table_rows, verdict_lines

    table = Table(*columns(found))
    rows = table_rows(found)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row, end_section=after is None or after[0] != row[0])
    loading.print_table(table)
    click.echo(f"{found.settings.questions} questions a trait; intervals by bootstrap over questions.")
    for line in (*judge_lines(found), *verdict_lines(found)):
        click.echo(line)


def summary(found: Evaluation, result: PersonalityResult) -> dict[str, Any]:
    """A personality's figures without answers, for ``--json``."""
    methods: dict[str, Any] = {}
    for method in result.methods:
        rating, ratio = method.rating(found.judge.name), method.fluency.ratio
        if rating is None or rating.mean is None:
            continue
        effect = rating.effect
        methods[method.method] = {
            "score": rating.mean.mean,
            "variance": rating.variance,
            "effect": None if effect is None else [effect.mean, effect.low, effect.high],
            "perplexity_ratio": [ratio.mean, ratio.low, ratio.high],
            "perplexity_ratio_in_character": method.fluency.ratio_in_character.mean,
            "failed": rating.failed,
        }
    differences = [
        {
            "method": difference.method,
            "against": difference.against,
            "at_equal_cost": difference.matched,
            "strength": difference.strength,
            "difference": [difference.effect.mean, difference.effect.low, difference.effect.high],
        }
        for difference in result.differences
    ]
    return {
        "personality": result.personality,
        "judge": found.judge.name,
        "scale": [found.judge.lowest, found.judge.highest],
        "judge_auc": found.judge.auc.get(result.trait),
        "questions": len(result.questions),
        "methods": methods,
        "differences": differences,
    }


def _residual_alone(
    model: Any,
    tokenizer: Any,
    folder: Path,
    name: str,
    said: Sequence[Transcript],
    given: Sequence[Question],
    batch_size: int,
    seed: int,
    quiet: bool,
) -> PersonalityAdapter:
    """The residual difference alone of one trait, layer and dose found on questions that nothing else asks."""
    from dataclasses import replace

    from npti_export.evaluation.dose.recalibration import own_questions
    from npti_export.evaluation.judges.local_judge import LocalJudge
    from npti_export.evaluation.protocol import EVALUATION_DECODING
    from npti_export.evaluation.rivals import most_residual_answers, residual_alone
    from npti_export.identification.files import TraitFiles
    from npti_export.identification.questions import HELD_BACK
    from npti_export.identification.selection import read_measured
    from npti_export.traits.material import Question

    statistics, measured, base_model = read_measured(TraitFiles(folder, name))
    held_back = [Question(name, text) for text in own_questions(given, said, name, HELD_BACK, seed)]
    steps = most_residual_answers(base_model.num_layers, len(held_back))
    with loading.stage(f"{name}: residual alone", steps, quiet) as progress:
        return residual_alone(
            model,
            tokenizer,
            base_model,
            name,
            statistics,
            measured,
            held_back,
            LocalJudge.train(said),
            replace(EVALUATION_DECODING, batch_size=batch_size),
            progress,
        )
