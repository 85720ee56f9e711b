"""``npti-export eval``: a personality beside the unsteered model, the placebo and the prompt-only baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.evaluation.protocol import Judge, Report


@click.command("eval", epilog="Example: npti-export eval --personality openness+ --judge openai:gpt-4o-2024-08-06")
@click.option("--personality", required=True, help="Such as openness+; several terms are evaluated one by one.")
@click.option(
    "--judge",
    "judge_name",
    default="local",
    show_default=True,
    help="local, or openai:MODEL such as openai:gpt-4o-2024-08-06 (key from OPENAI_API_KEY).",
)
@click.option("--judge-url", help="Base URL of any OpenAI-compatible server. [env: OPENAI_BASE_URL]")
@options.model
@options.adapter
@click.option(
    "--transcripts",
    type=click.Path(path_type=Path),
    help="Transcripts that the local judge learns from; those beside the adapter unless given.",
)
@options.questions
@options.personas
@click.option("--max-questions", type=click.IntRange(2), help="Ask only the first so many test questions.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Keep answers and judgements here, and resume from them."
)
@options.device
@options.dtype
@options.batch_size
@options.seed
@options.quiet
@options.as_json
def command(
    personality: str,
    judge_name: str,
    judge_url: str | None,
    model_name: str | None,
    adapter: str | None,
    transcripts: Path | None,
    questions_file: Path | None,
    personas_file: Path | None,
    max_questions: int | None,
    output: Path | None,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure whether a personality works, beside its controls.

    The test questions go to the unsteered model, the adapter, the placebo (as many random neurons) and the model with a
    persona in its prompt; a judge scores the answers, and each figure comes with its 95 % interval over questions.
    """
    from dataclasses import replace

    from npti_export.traits import PersonalitySpec, trait_named
    from npti_export.traits.material import read_personas, read_questions, shipped_personas, shipped_questions

    spec = PersonalitySpec.parse(personality)
    if spec.is_neutral:
        raise NptiError(f"{personality!r} steers nothing; name a personality such as openness+.")
    for term in spec.terms:
        trait_named(term.trait)
    check_judge_name(judge_name)
    if output and output.exists() and not output.is_dir():
        raise NptiError(f"{output} is a file; --output names a folder.")
    asked = {
        term.trait: (
            read_questions(questions_file, term.trait) if questions_file else shipped_questions(term.trait, "test")
        )
        for term in spec.terms
    }
    personas = {
        term.trait: (read_personas(personas_file, term.trait) if personas_file else shipped_personas(term.trait))
        for term in spec.terms
    }
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import find_adapter
    from npti_export.evaluation.protocol import CONDITIONS, EVALUATION_DECODING, evaluate
    from npti_export.evaluation.report import to_json
    from npti_export.steering.sites import base_model_id

    folder = adapter or str(find_adapter(base_model_id(model)))
    loaded = PersonalityAdapter.from_pretrained(folder)
    loaded.personality(spec)
    reports = []
    for term in spec.terms:
        judge = make_judge(judge_name, judge_url, term.trait, Path(folder), transcripts, output)
        questions = asked[term.trait][:max_questions]
        with loading.stage(f"{term}: answers", len(CONDITIONS) * len(questions), quiet) as progress:
            decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
            reports.append(
                evaluate(
                    model, tokenizer, loaded, term, questions, personas[term.trait], judge, decoding, seed, progress
                )
            )
        if output:
            output.mkdir(parents=True, exist_ok=True)
            text = json.dumps(to_json(reports[-1]), indent=1, ensure_ascii=False)
            (output / f"{term.trait}_{term.pole}.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps([summary(report) for report in reports], indent=2))
    else:
        print_reports(reports)


def check_judge_name(name: str) -> None:
    """Refuses a judge that is not there, before any work is done."""
    if name != "local" and not (name.startswith("openai:") and name != "openai:"):
        raise NptiError(f"There is no judge {name!r}; local or openai:MODEL is expected.")


def make_judge(
    name: str, url: str | None, trait: str, adapter: Path, transcripts: Path | None, output: Path | None
) -> Judge:
    """The judge of that name for a trait."""
    from npti_export.evaluation.local_judge import LocalJudge
    from npti_export.evaluation.openai_judge import OpenAIJudge
    from npti_export.identification.elicit import read_transcripts
    from npti_export.pipeline import transcripts_file
    from npti_export.traits import trait_named

    if name.startswith("openai:"):
        record = output / "judgements.jsonl" if output else None
        return OpenAIJudge(trait_named(trait), name.removeprefix("openai:"), url, record)
    path = transcripts or transcripts_file(adapter, trait)
    found = [transcript for transcript in read_transcripts(path) if transcript.trait == trait]
    if not found:
        raise NptiError(
            f"The local judge learns from transcripts of identification, and {path} holds none for {trait}; name a "
            "file with --transcripts, or use --judge openai:MODEL."
        )
    return LocalJudge.train(found)


def print_reports(reports: Sequence[Report]) -> None:
    """The table of all reports, and what scored them."""
    from rich.table import Table

    from npti_export.evaluation.report import COLUMNS, judge_line, table_rows

    table = Table(*COLUMNS)
    for row in table_rows(reports):
        table.add_row(*row, end_section=row[1] == "persona prompt")
    loading.print_table(table)
    for report in reports:
        click.echo(f"{report.personality}: {judge_line(report)}")


def summary(report: Report) -> dict[str, Any]:
    """A report without answers, for ``--json``."""
    return {
        "personality": report.personality,
        "judge": report.judge,
        "scale": report.scale,
        "judge_auc": report.auc,
        "questions": len(report.questions),
        "conditions": {
            name: {
                "score": result.score.mean,
                "effect": [result.effect.mean, result.effect.low, result.effect.high],
                "perplexity_ratio": [result.fluency.mean, result.fluency.low, result.fluency.high],
                "failed": result.failed,
            }
            for name, result in report.results.items()
        },
    }
