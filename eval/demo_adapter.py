"""Makes and measures the committed adapter of npti-demo: all ten poles, with controls.

    python eval/demo_adapter.py

writes adapters/npti-demo/, eval/results/demo_adapter.md and the README's table of effects; the scores go into the
adapter's config and card.
"""

from __future__ import annotations

from pathlib import Path

import click

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import loading
from npti_export.cli.eval import print_evaluation
from npti_export.evaluation.answering import Asker
from npti_export.evaluation.dose.recalibration import (
    MAX_RATIO,
    QUESTIONS,
    own_questions,
    recalibrate,
    write_calibration,
)
from npti_export.evaluation.dose.trial import DoseBudget
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.methods import ADAPTER, PERSONA, PLACEBO, UNSTEERED, Rivals, methods_of
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.evaluation.report.card_scores import with_scores
from npti_export.evaluation.report.table import columns, judge_lines, markdown, table_rows
from npti_export.evaluation.results import Evaluation
from npti_export.evaluation.side_by_side import Exam, Subject, evaluate
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.selector import AUTO, Selector
from npti_export.pipeline import identify, transcripts_file
from npti_export.traits import TRAITS, Pole, Term, trait_named
from npti_export.traits.material import shipped_personas, shipped_questions

FOLDER = Path("adapters/npti-demo")
RESULT = Path("eval/results/demo_adapter.md")
README = Path("README.md")
BEGIN, END = "<!-- effect:begin -->\n", "<!-- effect:end -->"
HEADER = """# The ten poles of npti-demo, measured

Made by `python eval/demo_adapter.py`: identification with the shipped questions and personas (100 questions a pole),
the method of each pole on 30 questions held back (`--method auto`), its dose on 60 that identification did not ask
(as `npti-export calibrate` finds it), and the 92 test questions of each trait, which none of these saw. Effect: score
minus that of the unsteered model, in the pole's direction. The placebo moves as many random neurons of the same layers
by the same shifts, and adds as long a random vector behind the same layers. Decoding is greedy with repetition penalty
1.15. The judge learned from the answers of identification, which `fitted` vectors were fitted to; a judge of other
answers finds as much ([methods.md](methods.md)). All methods side by side, with fewer questions:
[demo/report.md](demo/report.md).

"""
SHOWN = (UNSTEERED, ADAPTER, PLACEBO, PERSONA)


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
    judges = {name: LocalJudge.train(read_transcripts(transcripts_file(FOLDER, name))) for name in names}
    dosed = recalibrate(
        model,
        tokenizer,
        found.adapter,
        {name: [[found.adapter.traits[name]]] for name in names},
        (),
        {name: own_questions_of(name) for name in names},
        {name: [judges[name]] for name in names},
        EVALUATION_DECODING,
        DoseBudget(MAX_RATIO),
        loading.stage,
    )
    for warning in dosed.warnings:
        loading.notice(f"Note: {warning}")
    adapter = dosed.adapter
    adapter.save_pretrained(FOLDER)
    write_calibration(FOLDER, dosed)

    exam = Exam({name: shipped_questions(name, "test") for name in names}, {name: [judges[name]] for name in names})
    subjects = []
    for term in (Term(name, pole) for name in names for pole in Pole):
        methods = methods_of(term, trait_named(term.trait), adapter, shipped_personas(term.trait), Rivals(), exam.seed)
        subjects.append(Subject(term, tuple(method for method in methods if method.name in SHOWN)))
    asker = Asker(model, tokenizer, EVALUATION_DECODING)
    evaluation = evaluate(asker, subjects, exam, FOLDER.name, "python eval/demo_adapter.py", loading.stage)
    adapter = with_scores(adapter, evaluation)
    adapter.save_pretrained(FOLDER)
    print_evaluation(evaluation)
    if not traits:
        reasons = {name: {pole: swept.reason for pole, swept in dosed.swept[name].items()} for name in names}
        lines = [*markdown(columns(evaluation), table_rows(evaluation)), "", *judge_lines(evaluation)]
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(HEADER + "\n".join(lines) + "\n" + chosen_ways(reasons), encoding="utf-8")
        readme = README.read_text(encoding="utf-8")
        before, _, rest = readme.partition(BEGIN)
        table = readme_table(evaluation, adapter)
        README.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")


def own_questions_of(name: str) -> list[str]:
    """Questions for the dose, which identification did not ask."""
    transcripts = read_transcripts(transcripts_file(FOLDER, name))
    return own_questions(shipped_questions(name, "identification"), transcripts, name, QUESTIONS, seed=0)


def chosen_ways(reasons: dict[str, dict[Pole, str]]) -> str:
    """Why each pole is steered as it is, as calibration said on the questions held back."""
    lines = ["", "## Method and dose, as found on the questions held back", ""]
    lines += [f"- `{name}{pole.sign}`: {reason}" for name in reasons for pole, reason in reasons[name].items()]
    return "\n".join(lines) + "\n"


def readme_table(evaluation: Evaluation, adapter: PersonalityAdapter) -> str:
    """The effect of every pole beside its controls, as it stands in the README."""
    lines = [
        "",
        "On the bundled npti-demo, 92 questions a trait that identification never saw. Effect: the local judge's score",
        "(0 to 1) minus that of the unsteered model, in the pole's direction, with its 95 % interval over questions.",
        "Placebo: as many random neurons, moved as far, and as long a random vector. Cost: perplexity ratio under the",
        "unsteered model. Method and dose were found on other questions (`--method auto`, `calibrate`). Made by",
        "`python eval/demo_adapter.py`; more in [eval/results](eval/results/demo_adapter.md).",
        "",
        "| personality | effect | placebo | persona in the prompt | perplexity ratio | method |",
        "|---|---|---|---|---|---|",
    ]
    for result in evaluation.personalities:
        method = adapter.traits[result.trait].poles[result.pole].method.name
        steered, placebo, prompt = (found for name in (ADAPTER, PLACEBO, PERSONA) if (found := result.method(name)))
        effects = [
            rating.effect for found in (steered, placebo, prompt) if (rating := found.rating()) and rating.effect
        ]
        lines.append(
            f"| `{result.personality}` | {effects[0]} | {effects[1].mean:+.2f} | {effects[2].mean:+.2f} "
            f"| {steered.fluency.ratio.mean:.2f} | {method} |"
        )
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    main()
