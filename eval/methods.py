"""Which way to steer has which effect at which cost: methods, thresholds and doses, on questions no selection saw.

    python eval/methods.py

on npti-demo, or `--model` with `--output`. Writes methods.md (a table over all poles, and the best of each pole within
the budget), methods.json (every figure with its interval) and methods.png (effect against cost) into eval/results/.
About half an hour for five traits on two cores. The persona in the prompt is drawn beside the ways.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from of_traits import Run, run
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.records import ONLY_RESIDUAL, TraitRecord
from npti_export.cli import loading
from npti_export.evaluation.dose.trial import MAX_FLUENCY, Trial
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Prompt, generate_answers
from npti_export.identification.elicit import elicit
from npti_export.identification.files import TraitFiles
from npti_export.identification.fit import fit_ways, most_fitted
from npti_export.identification.questions import MAX_QUESTIONS
from npti_export.identification.selection import run_selects
from npti_export.identification.selector import Selector, layers_to_try
from npti_export.identification.stages import RELIABILITY, run_elicit_and_measure
from npti_export.pipeline import plan_traits, work_with
from npti_export.traits import Pole
from npti_export.traits.material import Question, shipped_personas, shipped_questions

DOSES = {
    "npti": (0.35, 0.7, 1.4),
    "mean-shift": (1.0, 2.0, 3.0),
    "residual": (0.7, 1.4, 2.0),
    "hybrid": (0.5, 1.0, 1.5),
    "fitted": (0.7, 1.4, 2.0),
}
JUDGE_QUESTIONS = 100
PROMPT = "persona in the prompt"
TICKS = (1, 1.25, 1.5, 2, 3, 5, 8, 12)
"""Of the cost in the picture."""


@dataclass(frozen=True)
class Point:
    """One way at one dose at one pole.

    Args:
        way: The way, without what differs between poles; or the persona in the prompt.
        personality: The pole, such as ``openness+``.
        gamma: The dose; None for the prompt.
        neurons: How many are moved.
        effect: Change of the local judge's score towards the pole.
        fluency: Perplexity ratio.
    """

    way: str
    personality: str
    gamma: float | None
    neurons: int
    effect: Estimate
    fluency: Estimate


def ways(num_layers: int) -> dict[str, Selector]:
    """What is tried, by name."""
    tried = {
        "npti δ ≥ 0.1, caps (the paper)": Selector(),
        "npti δ ≥ 0.1": Selector(caps="none"),
        "npti δ ≥ 0.2": Selector(min_difference=0.2, caps="none"),
        "mean-shift 25 %": Selector("mean-shift", share=0.25),
        "mean-shift 50 %": Selector("mean-shift", share=0.5),
    }
    for layer in layers_to_try(range(num_layers)):
        tried[f"residual behind layer {layer}"] = Selector("residual", residual_layers=(layer,))
    hybrid = Selector("hybrid")
    fitted = Selector("fitted")
    return tried | {
        f"hybrid behind layer {_numbers(hybrid.residual_behind(num_layers))}": hybrid,
        f"fitted behind layers {_numbers(fitted.residual_behind(num_layers))}, first token too": fitted,
    }


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


@click.command()
@run
@click.option("--max-questions", type=click.IntRange(2), default=24, show_default=True, help="Test questions a trait.")
def main(run: Run, max_questions: int) -> None:
    model, tokenizer = run.load()
    points: list[Point] = []
    for name in run.names:
        questions = shipped_questions(name, "test")
        step = max(1, len(questions) // max_questions)  # they stand facet by facet
        points += points_of(model, tokenizer, name, questions[::step][:max_questions], run.batch_size)
    model_id = work_with(model, tokenizer).base_model.id
    record = [asdict(point) for point in points]
    run.write("methods", record, report(points, model_id, max_questions), picture(points, model_id))


def points_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    questions: Sequence[Question],
    batch_size: int,
) -> list[Point]:
    """All ways and doses at both poles of one trait."""
    work = work_with(model, tokenizer, batch_size)
    material = plan_traits([name])[name]
    asked = loading.stage(f"{name}: answers in character", 2 * len(material.planned))
    with tempfile.TemporaryDirectory() as folder, asked as progress:
        files = TraitFiles(Path(folder), name)
        transcripts, statistics, measured = run_elicit_and_measure(work, files, material, RELIABILITY, progress)
    # The judge learns from answers to other questions: vectors that are fitted to answers write somewhat like these.
    seen = {transcript.question for transcript in transcripts}
    every = plan_traits([name], max_questions=MAX_QUESTIONS + JUDGE_QUESTIONS)[name].planned
    others = [(question, persona) for question, persona in every if question.text not in seen]
    with loading.stage(f"{name}: answers for the judge", len(others)) as progress:
        rating = elicit(model, tokenizer, others, progress=progress)
    selectors = ways(work.base_model.num_layers)
    selected = run_selects(name, statistics, measured, [list(selectors.values())])
    with loading.stage(f"{name}: fit vectors", most_fitted(selected, len(transcripts))) as progress:
        [fitted] = fit_ways(model, tokenizer, selected, transcripts, batch_size, progress)
    tried = dict(zip(selectors, fitted, strict=True))
    usual = f"residual behind layer {_numbers(Selector('residual').residual_behind(work.base_model.num_layers))}"
    tried[f"{usual}, first token too"] = at_first_token(tried[usual])
    decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
    texts = [question.text for question in questions]
    points: list[Point] = []
    steps = 1 + 2 + sum(len(doses_of(trait, pole)) for trait in tried.values() for pole in Pole)
    with loading.stage(f"{name}: {len(tried)} ways", steps * len(texts)) as progress:
        judge = LocalJudge.train(rating)
        trial = Trial(model, tokenizer, work.base_model, texts, judge, decoding, progress)
        for pole in Pole:
            for way, trait in tried.items():
                for gamma in doses_of(trait, pole):
                    dose = trial.measure(trait, pole, gamma)
                    record = trait.poles[pole]
                    moved = 0 if record.method.name in ONLY_RESIDUAL else len(record.neurons)
                    points.append(Point(way, f"{name}{pole.sign}", gamma, moved, dose.effect, dose.fluency))
            rng = random.Random(f"prompt {name}")
            described = [persona for persona in shipped_personas(name) if persona.pole is pole]
            prompts = [Prompt(text, rng.choice(described).text) for text in texts]
            said = generate_answers(model, tokenizer, prompts, decoding, progress)
            points.append(Point(PROMPT, f"{name}{pole.sign}", None, 0, *trial.compare(said, pole)))
    return points


def at_first_token(trait: TraitRecord) -> TraitRecord:
    """The trait steered at the last token of the prompt too, so that the first token of an answer is."""
    return replace(
        trait,
        poles={pole: replace(record, positions="last_prompt+generated") for pole, record in trait.poles.items()},
    )


def doses_of(trait: TraitRecord, pole: Pole) -> tuple[float, ...]:
    """The values of γ that a way is tried at."""
    return DOSES[trait.poles[pole].method.name]


def report(points: Sequence[Point], model_id: str, questions: int) -> str:
    """The tables as Markdown."""
    poles = len({point.personality for point in points})
    lines = [
        "# Effect against cost, by way to steer",
        "",
        f"Made by `python eval/methods.py` on {model_id}: {poles} poles, {questions} test questions a trait that no",
        "selection saw, rated by a local judge that learned from answers to other questions than the selection.",
        "Separation: its score (0 to 1) of the high pole's answers minus that of the low pole's, mean over the traits.",
        "Effect: the score minus that of the unsteered model, towards the pole, mean over the poles, and that of the",
        "pole where it is least. Cost: perplexity ratio under the unsteered model, geometric mean. *Good*: poles with",
        f"a ratio of at most {MAX_FLUENCY:g} and an effect of 0.15 or more.",
        "Every figure with its interval is in [methods.json](methods.json).",
        "",
        "![Effect against cost](methods.png)",
        "",
        "| way | γ | neurons | separation | effect | least | cost | good |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (way, gamma), group in grouped(points).items():
        effects = numbers(group, "effect")  # of both poles, so twice their mean is how far they are apart
        ratios = numbers(group, "fluency")
        good = int(((ratios <= MAX_FLUENCY) & (effects >= 0.15)).sum())
        dose = "" if gamma is None else f"{gamma:g}"
        lines.append(
            f"| {way} | {dose} | {np.mean([point.neurons for point in group]):.0f} | {2 * effects.mean():.2f} "
            f"| {effects.mean():+.2f} | {effects.min():+.2f} | {np.exp(np.log(ratios).mean()):.2f} "
            f"| {good} of {len(group)} |"
        )
    lines += [
        "",
        "The best way and dose of each pole whose mean cost is in the budget; chosen on these same questions, so a",
        "little too good: what `--method auto` chooses on others is in [demo_adapter.md](demo_adapter.md).",
        "",
        "| personality | way | γ | effect | cost | the paper's way, best in budget | persona in the prompt |",
        "|---|---|---|---|---|---|---|",
    ]
    for personality in dict.fromkeys(point.personality for point in points):
        of_pole = [point for point in points if point.personality == personality]
        steered = [point for point in of_pole if point.way != PROMPT and point.fluency.mean <= MAX_FLUENCY]
        prompt = next(point for point in of_pole if point.way == PROMPT)
        if not steered:
            lines.append(f"| `{personality}` | none in the budget | | | | | {prompt.effect.mean:+.2f} |")
            continue
        best = max(steered, key=lambda point: point.effect.mean)
        paper = [point.effect.mean for point in steered if point.way == of_pole[0].way]
        lines.append(
            f"| `{personality}` | {best.way} | {best.gamma:g} | {best.effect} | {best.fluency.mean:.2f} "
            f"| {f'{max(paper):+.2f}' if paper else 'none'} | {prompt.effect.mean:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def picture(points: Sequence[Point], model_id: str) -> Figure:
    """Effect against cost, a line a way: the mean over all poles, and each trait by itself."""
    traits = list(dict.fromkeys(point.personality[:-1] for point in points))
    panels = [("all poles", points)]
    panels += [(trait, [point for point in points if point.personality[:-1] == trait]) for trait in traits]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 3.6 * rows), dpi=110, layout="constrained")
    figure.suptitle(f"Effect against cost on {model_id}, questions that no selection saw")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    names = list(dict.fromkeys(point.way for point in points))
    for axis, (title, group) in zip(axes, panels, strict=False):
        for at, way in enumerate(names):
            of_way = grouped([point for point in group if point.way == way]).values()
            cost = [float(np.exp(np.log(numbers(of_dose, "fluency")).mean())) for of_dose in of_way]
            effect = [float(numbers(of_dose, "effect").mean()) for of_dose in of_way]
            style = {"marker": "*", "markersize": 13} if way == PROMPT else {"marker": "o", "markersize": 4}
            colour = "black" if way == PROMPT else f"C{at % 10}"
            axis.plot(cost, effect, color=colour, linestyle="-" if at < 10 else "--", label=way, **style)
        axis.axvline(MAX_FLUENCY, color="grey", linewidth=0.8, linestyle=":")
        axis.axhline(0.0, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        axis.set_xlim(0.85, TICKS[-1])
        axis.set(title=title, xlabel="perplexity ratio", ylabel="effect")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize="x-small")
    return figure


def grouped(points: Sequence[Point]) -> dict[tuple[str, float | None], list[Point]]:
    """Points of one way and dose, over the poles."""
    groups: dict[tuple[str, float | None], list[Point]] = {}
    for point in points:
        groups.setdefault((point.way, point.gamma), []).append(point)
    return groups


def numbers(points: Sequence[Point], what: str) -> NDArray[np.float64]:
    """The mean of an estimate of each point, float64 [points]."""
    return np.array([getattr(point, what).mean for point in points])


if __name__ == "__main__":
    main()
