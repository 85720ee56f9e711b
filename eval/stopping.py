"""How many questions are enough: reliability of delta by questions asked, and the effect beside that of all questions.

    python eval/stopping.py

on npti-demo, or `--model` with `--output`. Writes stopping.md, stopping.json and stopping.png into eval/results/, and
takes about twenty minutes for five traits on two cores.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure
from of_traits import Run, run
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.cli import loading
from npti_export.evaluation.dose.trial import Trial
from npti_export.evaluation.intervals import Estimate, bootstrap_mean
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.files import TraitFiles
from npti_export.identification.fit import fit_ways, most_fitted
from npti_export.identification.reliability import Reliability
from npti_export.identification.selection import run_selects
from npti_export.identification.selector import Selector
from npti_export.identification.stages import RELIABILITY, run_elicit_and_measure
from npti_export.pipeline import plan_traits, work_with
from npti_export.traits import Pole
from npti_export.traits.material import shipped_questions

SIZES = (36, 100, 378)
"""Questions a pole: about where a run may stop first, the default limit, and all that are not held back."""
SELECTORS = {
    "npti": (Selector(caps="none"), 0.7),
    "residual": (Selector("residual"), 1.4),
    "fitted": (Selector("fitted"), 1.4),
}
"""Rules whose effect is compared: the paper's (without caps, which cost more than 1.5 times the perplexity on npti-demo
at any dose), the difference of the means, and the one that methods.md finds best."""


@dataclass(frozen=True)
class Compared:
    """The effect of a selection from some of the questions beside that from all of them.

    Args:
        personality: The pole.
        method: The rule.
        questions: Asked at each pole.
        effect: Change of the local judge's score towards the pole, on test questions.
        difference: That effect minus the effect of all questions, paired over test questions.
    """

    personality: str
    method: str
    questions: int
    effect: Estimate
    difference: Estimate


@click.command()
@run
@click.option("--test-questions", type=click.IntRange(2), default=46, show_default=True)
def main(run: Run, test_questions: int) -> None:
    model, tokenizer = run.load()
    curves: dict[str, tuple[Reliability, ...]] = {}
    compared: list[Compared] = []
    for name in run.names:
        curves[name], of_trait = measure_trait(model, tokenizer, name, test_questions, run.batch_size)
        compared += of_trait
    model_id = work_with(model, tokenizer).base_model.id
    record = {
        "model": model_id,
        "curves": {name: [asdict(point) for point in curve] for name, curve in curves.items()},
        "effects": [asdict(row) for row in compared],
    }
    run.write("stopping", record, page(curves, compared, model_id), picture(curves, model_id))


def measure_trait(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, test_questions: int, batch_size: int
) -> tuple[tuple[Reliability, ...], list[Compared]]:
    """The curve of one trait over all questions, and the effects of selections from the first of them and from all."""
    work = work_with(model, tokenizer, batch_size)
    chosen = {}
    with tempfile.TemporaryDirectory() as folder:
        files = TraitFiles(Path(folder), name)
        for size in SIZES:
            material = plan_traits([name], max_questions=size)[name]
            with loading.stage(f"{name}: {size} questions", 2 * len(material.planned)) as progress:
                transcripts, statistics, measured = run_elicit_and_measure(work, files, material, 1.0, progress)
            selected = run_selects(name, statistics, measured, [[selector for selector, _ in SELECTORS.values()]])
            with loading.stage(f"{name}: fit vectors", most_fitted(selected, len(transcripts))) as progress:
                [records] = fit_ways(model, tokenizer, selected, transcripts, batch_size, progress)
            chosen[measured.curve[-1].questions] = dict(zip(SELECTORS, records, strict=True))
    questions = shipped_questions(name, "test")
    texts = [question.text for question in questions[:: max(1, len(questions) // test_questions)]][:test_questions]
    decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
    rows = []
    with loading.stage(f"{name}: effects", (1 + 2 * len(SIZES) * len(SELECTORS)) * len(texts)) as progress:
        trial = Trial(model, tokenizer, work.base_model, texts, LocalJudge.train(transcripts), decoding, progress)
        for method, (_, gamma) in SELECTORS.items():
            for pole in Pole:
                doses = {size: trial.measure(records[method], pole, gamma) for size, records in chosen.items()}
                whole = np.array(doses[max(doses)].changes)
                for size, dose in doses.items():
                    difference = bootstrap_mean(np.array(dose.changes) - whole, 0)
                    rows.append(Compared(f"{name}{pole.sign}", method, size, dose.effect, difference))
    return measured.curve, rows


def page(curves: dict[str, tuple[Reliability, ...]], compared: list[Compared], model_id: str) -> str:
    """The tables as Markdown."""
    doses = ", ".join(f"{method} γ {gamma:g}" for method, (_, gamma) in SELECTORS.items())
    lines = [
        "# How many questions are enough",
        "",
        f"Made by `python eval/stopping.py` on {model_id}. Split-half: correlation over all neurons of delta from two",
        "halves of the questions, corrected to full length; overlap: of the neurons that either half would choose, the",
        "share that both would; margin: half the width of delta's 95 % interval, median over the chosen neurons (both",
        f"means over the poles). A run stops at a split-half of {RELIABILITY:g}, not before 30 questions, and at 100.",
        "",
        "| trait | questions a pole | split-half | overlap | margin |",
        "|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        shown = [point for at, point in enumerate(curve) if at in (0, 2, 4, 7) or at % 8 == 7 or point is curve[-1]]
        for point in shown:
            margins = [margin for margin in point.margin.values() if margin is not None]
            margin = f"±{np.mean(margins):.3f}" if margins else ""
            overlap = np.mean(list(point.overlap.values()))
            lines.append(f"| {name} | {point.questions} | {point.split_half:.3f} | {overlap:.2f} | {margin} |")
    lines += [
        "",
        "![Reliability by questions](stopping.png)",
        "",
        "## The effect beside that of all questions",
        "",
        f"On test questions that no selection saw, one dose a rule ({doses}). Difference: from all questions, paired.",
        "",
        "| personality | rule | questions a pole | effect | difference from all |",
        "|---|---|---|---|---|",
    ]
    most = max(row.questions for row in compared)
    for row in compared:
        beside = "" if row.questions == most else str(row.difference)
        lines.append(f"| `{row.personality}` | {row.method} | {row.questions} | {row.effect} | {beside} |")
    lines.append("")
    for size, method in product(sorted({row.questions for row in compared} - {most}), SELECTORS):
        of_size = [row for row in compared if (row.questions, row.method) == (size, method)]
        equal = sum(row.difference.low <= 0.0 <= row.difference.high for row in of_size)
        mean = np.mean([row.difference.mean for row in of_size])
        # The answers of each pole are its own, so the errors of the differences add up as independent ones do.
        widths = np.array([row.difference.high - row.difference.low for row in of_size])
        half = np.sqrt((widths**2).sum()) / 2 / len(of_size)
        whole = np.mean([row.effect.mean for row in compared if (row.questions, row.method) == (most, method)])
        lines.append(
            f"- {method}, {size} questions: the interval of the difference holds 0 at {equal} of {len(of_size)} poles; "
            f"mean difference over the poles {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}], beside a mean "
            f"effect of {whole:+.3f} from all questions."
        )
    return "\n".join(lines) + "\n"


def picture(curves: dict[str, tuple[Reliability, ...]], model_id: str) -> Figure:
    """Split-half reliability and overlap by questions, a line a trait."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    figure.suptitle(f"Reliability by questions asked, {model_id}")
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        questions = [point.questions for point in curve]
        left.plot(questions, [point.split_half for point in curve], marker="o", markersize=3, label=name)
        right.plot(questions, [np.mean(list(point.overlap.values())) for point in curve], marker="o", markersize=3)
    left.axhline(RELIABILITY, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="questions a pole", ylabel="split-half reliability of delta")
    right.set(xlabel="questions a pole", ylabel="overlap of the halves' selections", ylim=(0, 1))
    left.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
