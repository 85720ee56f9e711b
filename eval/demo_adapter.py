"""Makes and measures the committed adapter of npti-demo: all ten poles, with controls.

    python eval/demo_adapter.py

writes adapters/npti-demo/, eval/results/demo_adapter.md and the README's table of effects; the scores go into the
adapter's config and card.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import loading
from npti_export.cli.eval import print_reports
from npti_export.evaluation.local_judge import LocalJudge
from npti_export.evaluation.protocol import ADAPTER, CONDITIONS, PLACEBO, PROMPT, Report, evaluate
from npti_export.evaluation.report import to_markdown
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.selector import AUTO, Selector
from npti_export.pipeline import identify, transcripts_file
from npti_export.traits import TRAITS, PersonalitySpec, Pole, Term
from npti_export.traits.material import shipped_personas, shipped_questions

FOLDER = Path("adapters/npti-demo")
RESULT = Path("eval/results/demo_adapter.md")
README = Path("README.md")
BEGIN, END = "<!-- effect:begin -->\n", "<!-- effect:end -->"
HEADER = """# The ten poles of npti-demo, measured

Made by `python eval/demo_adapter.py`: identification with the shipped questions and personas (100 questions a pole),
method and dose of each pole on 30 questions held back (`--method auto`), and the 92 test questions of each trait, which
neither saw. Effect: score minus that of the unsteered model, in the pole's direction. The placebo moves as many random
neurons of the same layers by the same shifts, and adds as long a random vector behind the same layers. Decoding is
greedy with repetition penalty 1.15.

"""


@click.command()
@click.option("--trait", "traits", multiple=True, help="Only these traits; all five unless given.")
def main(traits: tuple[str, ...]) -> None:
    model, tokenizer = loading.load_model(None, "cpu", "float32", quiet=True)
    names = traits or tuple(TRAITS)
    # All 100 questions: the judge of these tables is trained on the same answers.
    found = identify(
        model,
        tokenizer,
        names,
        FOLDER,
        reliability=1.0,
        selector=Selector(AUTO),
        stage=loading.stage,
        warn=loading.notice,
    )
    adapter = found.adapter
    reports: list[Report] = []
    for name in names:
        judge = LocalJudge.train(read_transcripts(transcripts_file(FOLDER, name)))
        questions = shipped_questions(name, "test")
        record = adapter.traits[name]
        for pole in Pole:
            with loading.stage(f"{name}{pole.sign}: answers", len(CONDITIONS) * len(questions)) as progress:
                report = evaluate(
                    model,
                    tokenizer,
                    adapter,
                    Term(name, pole),
                    questions,
                    shipped_personas(name),
                    judge,
                    progress=progress,
                )
            reports.append(report)
            scored = replace(record.poles[pole], scores={"local": report.scores()})
            record = replace(record, poles={**record.poles, pole: scored})
        adapter = adapter.with_trait(record)
        adapter.save_pretrained(FOLDER)
    print_reports(reports)
    if not traits:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(HEADER + to_markdown(reports) + chosen_ways(found.reasons), encoding="utf-8")
        readme = README.read_text(encoding="utf-8")
        before, _, rest = readme.partition(BEGIN)
        table = readme_table(reports, adapter)
        README.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")


def chosen_ways(reasons: dict[str, dict[Pole, str]]) -> str:
    """Why each pole is steered as it is, as calibration said on the questions held back."""
    lines = ["", "## Method and dose, as found on the questions held back", ""]
    lines += [f"- `{name}{pole.sign}`: {reason}" for name in reasons for pole, reason in reasons[name].items()]
    return "\n".join(lines) + "\n"


def readme_table(reports: list[Report], adapter: PersonalityAdapter) -> str:
    """The effect of every pole beside its controls, as it stands in the README."""
    lines = [
        "",
        "On the bundled npti-demo, 92 questions a trait that identification never saw. Effect: the local judge's score",
        "(0 to 1) minus that of the unsteered model, in the pole's direction, with its 95 % interval over questions.",
        "Placebo: as many random neurons, moved as far, and as long a random vector. Cost: perplexity ratio under the",
        "unsteered model. Method and dose were found on other questions (`--method auto`). Made by",
        "`python eval/demo_adapter.py`; more in [eval/results](eval/results/demo_adapter.md).",
        "",
        "| personality | effect | placebo | persona in the prompt | perplexity ratio | method |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        [term] = PersonalitySpec.parse(report.personality).terms
        method = adapter.traits[term.trait].poles[term.pole].method.name
        steered, placebo, prompt = (report.results[name] for name in (ADAPTER, PLACEBO, PROMPT))
        lines.append(
            f"| `{report.personality}` | {steered.effect} | {placebo.effect.mean:+.2f} | {prompt.effect.mean:+.2f} "
            f"| {steered.fluency.mean:.2f} | {method} |"
        )
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    main()
