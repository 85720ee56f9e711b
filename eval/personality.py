"""The GPT-4o protocol for one adapter: both poles of its traits, with controls, judged blind from 1 to 5.

    OPENAI_API_KEY=… python eval/personality.py --adapter user/repo --model org/name --output eval/results/name

Answers and judgements are kept in the output folder as they come; the same command goes on where it was stopped. The
sum of the two poles' mean scores, the low one turned round (at most 10), is what the paper publishes.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import find_adapter
from npti_export.cli import loading, options
from npti_export.cli.eval import print_reports
from npti_export.errors import NptiError
from npti_export.evaluation.openai_judge import OpenAIJudge
from npti_export.evaluation.protocol import CONDITIONS, Report, evaluate
from npti_export.evaluation.report import to_json, to_markdown
from npti_export.steering.sites import base_model_id
from npti_export.traits import Pole, Term, trait_named
from npti_export.traits.material import read_personas, read_questions, shipped_personas, shipped_questions


@click.command()
@options.model
@options.adapter
@options.trait
@click.option("--judge-model", default="gpt-4o-2024-08-06", show_default=True)
@click.option("--judge-url", help="Base URL of any OpenAI-compatible server.")
@click.option("--max-questions", type=click.IntRange(2))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@options.questions
@options.personas
@options.device
@options.dtype
@options.seed
def main(
    model_name: str | None,
    adapter: str | None,
    traits: tuple[str, ...],
    judge_model: str,
    judge_url: str | None,
    max_questions: int | None,
    output: Path,
    questions_file: Path | None,
    personas_file: Path | None,
    device: str,
    dtype: str,
    seed: int,
) -> None:
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet=False)
    loaded = PersonalityAdapter.from_pretrained(adapter or find_adapter(base_model_id(model)))
    questions_of = (
        partial(read_questions, questions_file) if questions_file else partial(shipped_questions, split="test")
    )
    personas_of = partial(read_personas, personas_file) if personas_file else shipped_personas
    output.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    for name in traits or tuple(loaded.traits):
        judge = OpenAIJudge(trait_named(name), judge_model, judge_url, output / "judgements.jsonl")
        questions = questions_of(trait=name)[:max_questions]
        for pole in Pole:
            with loading.stage(f"{name}{pole.sign}", len(CONDITIONS) * len(questions)) as progress:
                report = evaluate(
                    model,
                    tokenizer,
                    loaded,
                    Term(name, pole),
                    questions,
                    personas_of(trait=name),
                    judge,
                    seed=seed,
                    progress=progress,
                )
            reports.append(report)
            text = json.dumps(to_json(report), indent=1, ensure_ascii=False)
            (output / f"{name}_{pole}.json").write_text(text + "\n", encoding="utf-8")
            (output / "report.md").write_text(to_markdown(reports), encoding="utf-8")
    print_reports(reports)
    for name in dict.fromkeys(report.personality[:-1] for report in reports):
        high, low = (next(r for r in reports if r.personality == name + sign) for sign in "+-")
        for condition in CONDITIONS:
            total = high.results[condition].score.mean + 6.0 - low.results[condition].score.mean
            click.echo(f"{name} {condition}: sum of both poles {total:.2f} of 10")


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except NptiError as error:
        raise SystemExit(f"Error: {error}") from None
