"""An evaluation as tables: rows for the terminal, and the whole of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from npti_export.evaluation.dose.sums import power_note, sum_of_poles, wins_against
from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.judges.judgement import failure_counts
from npti_export.evaluation.methods import ADAPTER, BOTH, PERSONA, PLAIN, UNSTEERED
from npti_export.evaluation.report.published_figures import SOURCE, published_for
from npti_export.evaluation.results import Evaluation, JudgeSettings, MethodResult

COLUMNS = ("personality", "method", "score", "variance", "effect [95 %]", "perplexity ratio [95 %]", "in character")
FLUENCY = "fluency"
FAILED = "failed"


def columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Heads of the main table; fluency by a judge only where one rated it."""
    rated = any(judge.criterion == "fluency" for judge in evaluation.settings.judges)
    return (*COLUMNS, *((FLUENCY,) if rated else ()), FAILED)


def table_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One row a personality, method and judge of the trait, under :func:`columns`."""
    heads = columns(evaluation)
    several = sum(judge.criterion == "trait" for judge in evaluation.settings.judges) > 1
    rows = []
    for result in evaluation.personalities:
        for method in result.methods:
            for rating in method.ratings:
                if rating.criterion != "trait":
                    continue
                fluency = method.rating(rating.judge, "fluency")
                row = (
                    result.personality,
                    f"{method.method} ({rating.judge})" if several else method.method,
                    "none" if rating.mean is None else f"{rating.mean.mean:.2f}",
                    "" if rating.variance is None else f"{rating.variance:.3f}",
                    "" if rating.effect is None else str(rating.effect),
                    "" if method.method == UNSTEERED else interval(method.fluency.ratio),
                    f"{method.fluency.ratio_in_character.mean:.2f}",
                    *(([f"{fluency.mean.mean:.2f}" if fluency and fluency.mean else ""]) if FLUENCY in heads else ()),
                    str(rating.failed) if rating.failed else "",
                )
                rows.append(row)
    return rows


def interval(estimate: Estimate) -> str:
    """A figure that has no sign, with its interval."""
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def judge_lines(evaluation: Evaluation) -> list[str]:
    """Who rated, how good a judge that is where it is known, and how judges agree."""
    lines = []
    for judge in evaluation.settings.judges:
        known = ", ".join(f"{trait} {auc:.3f}" for trait, auc in judge.auc.items())
        known = f"; cross-validated AUC: {known}" if known else ""
        failures = failure_counts(_failures(evaluation, judge))
        failed = (
            f"; no score: {', '.join(f'{what} {times} times' for what, times in failures.items())}" if failures else ""
        )
        lines.append(f"Judge of {judge.criterion}: {judge.name}, {judge.lowest:g} to {judge.highest:g}{known}{failed}.")
    for pair in evaluation.agreement:
        alpha, rank = ("none" if x is None else f"{x:.2f}" for x in (pair.alpha, pair.spearman))
        lines.append(
            f"Agreement of {pair.judges[0]} and {pair.judges[1]} on {pair.criterion}, {pair.answers} answers: "
            f"Krippendorff's α {alpha}, Spearman {rank}."
        )
    return lines


def certainty_lines(evaluation: Evaluation) -> list[str]:
    """What :func:`judge_lines` says, and how many questions a difference needs."""
    notes = (power_note(evaluation, method) for method in (PLAIN, UNSTEERED))
    return [*judge_lines(evaluation), *(note for note in notes if note)]


def _failures(evaluation: Evaluation, judge: JudgeSettings) -> Iterator[str | None]:
    for result in evaluation.personalities:
        for method in result.methods:
            if rating := method.rating(judge.name, judge.criterion):
                yield from rating.failures


def verdict_lines(evaluation: Evaluation) -> list[str]:
    """At how many poles the adapter has the larger effect than each other method, and where it has not."""
    lines = []
    for method in evaluation.methods:
        wins = wins_against(evaluation, method)
        if not wins.of:
            continue
        equal = wins_against(evaluation, method, matched=True)
        lines.append(
            f"Adapter against {method}: the larger effect at {wins.more} of {wins.of} poles (surely at {wins.surely})"
            + (f"; dialled to its cost, at {equal.more} of {equal.of} (surely at {equal.surely})." if equal.of else ".")
        )
    lost = [
        f"{result.personality} {difference.effect}"
        for result in evaluation.personalities
        for difference in result.differences
        if difference.against == PLAIN and not difference.matched and difference.effect.mean <= 0
    ]
    if lost:
        lines.append(f"Where the adapter does not beat the plain prompt, the difference is: {'; '.join(lost)}.")
    return lines


def to_markdown(evaluation: Evaluation, title: str = "Methods side by side") -> str:
    """The whole evaluation as Markdown."""
    settings = evaluation.settings
    decoding = settings.decoding
    versions = ", ".join(f"{name} {version}" for name, version in settings.versions.items())
    lines = [
        f"# {title}",
        "",
        f"Base model {settings.model}, adapter {settings.adapter}. {settings.questions} test questions a trait, which "
        "neither identification nor a judge's training saw; the same for every method, decoded greedily with "
        f"repetition penalty {decoding.repetition_penalty:g} and at most {decoding.max_new_tokens} tokens. Intervals "
        "of 95 % by bootstrap over questions, differences paired.",
        "",
        *([f"Made by `{settings.command}`.", ""] if settings.command else []),
        *(f"- {line}" for line in verdict_lines(evaluation)),
        "",
        "Effect: score minus that of the unsteered model, in the pole's direction. Perplexity ratio: of the answers "
        "under the unsteered model, to its own answers. In character: perplexity ratio under the model that was given "
        "personas of that pole, to the answers it gives then.",
        "",
        *markdown(columns(evaluation), table_rows(evaluation)),
        *_section("The adapter against the others", _difference_table(evaluation)),
        *_section("Sum of the poles, as published", _sum_table(evaluation)),
        *_section("Bleed: steer one, score all", _bleed_tables(evaluation)),
        *_section("Doses", _dose_table(evaluation)),
        *_section("Style and wording", _style_table(evaluation)),
        *_section("Other seeds of the identification questions", _seed_table(evaluation)),
        *_section("Judges, power, versions", _notes(evaluation, versions)),
    ]
    return "\n".join(lines) + "\n"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; a line end or a bar in a cell would break it, and neither is ever in a figure or a name."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _difference_table(evaluation: Evaluation) -> list[str]:
    rows = []
    for result in evaluation.personalities:
        for difference in result.differences:
            at = "as recommended"
            if difference.matched and difference.strength is not None and difference.ratio is not None:
                at = f"at equal cost: strength {difference.strength:.2f}, ratio {difference.ratio:.2f}"
            rows.append((result.personality, difference.against, at, str(difference.effect)))
    if not rows:
        return []
    note = (
        "How much larger the adapter's effect is. At equal cost the adapter's dial is turned until its answers have "
        "the other method's perplexity ratio, linearly between the doses measured; a method whose ratio is not above 1 "
        "has no such row."
    )
    return [note, "", *markdown(("personality", "against", "dose", "difference [95 %]"), rows)]


def _sum_table(evaluation: Evaluation) -> list[str]:
    rows, means = [], {}
    for method in evaluation.methods:
        sums = {trait: sum_of_poles(evaluation, trait, method) for trait in evaluation.traits}
        there = [found for found in sums.values() if found is not None]
        if not there:
            continue
        cells = ["" if s is None else f"{interval(s.total)} ({s.variance:.2f})" for s in sums.values()]
        means[method] = float(np.mean([found.total.mean for found in there]))
        rows.append((method, *cells, f"{means[method]:.2f}"))
    if not rows:
        return []
    judge = evaluation.judge
    drawn = (
        ""
        if (judge.lowest, judge.highest) == (1.0, 5.0)
        else (
            f" The scale of the judge {judge.name}, {judge.lowest:g} to {judge.highest:g}, is drawn to 1 to 5 here, "
            "so these sums are not those of a GPT-4o judge."
        )
    )
    note = (
        "Mean score of the high pole plus 6 minus that of the low one, at most 10; the scores' variance in round "
        f"brackets.{drawn}"
    )
    figures = published_for(evaluation.settings.model)
    beside = [f"No figures are published for {evaluation.settings.model} that could stand beside these."]
    if figures:
        known = "; ".join(
            f"{figure.method} {figure.total:.2f}" + (f" ({figure.variance:.2f})" if figure.variance else "")
            for figure in figures
        )
        beside = [f"Published for {evaluation.settings.model}, mean over the traits: {known}. {SOURCE}."]
    return [note, "", *markdown(("method", *evaluation.traits, "mean"), rows), "", *beside]


def _bleed_tables(evaluation: Evaluation) -> list[str]:
    lines: list[str] = []
    for name in (ADAPTER, PERSONA, BOTH):
        rows = []
        for result in evaluation.personalities:
            method = result.method(name)
            if method is not None and method.bleed:
                cells = (method.bleed.get(trait) for trait in evaluation.traits)
                rows.append((result.personality, *("" if cell is None else str(cell) for cell in cells)))
        if rows:
            lines += ["", *markdown((name, *evaluation.traits), rows)]
    if not lines:
        return []
    return [
        "Change of every trait's score towards its high end, each on questions of that trait "
        f"({evaluation.settings.bleed_questions} of the traits that are not steered).",
        *lines,
    ]


def _dose_table(evaluation: Evaluation) -> list[str]:
    rows = []
    for result in evaluation.personalities:
        for curve in result.curves:
            points = "; ".join(
                f"{point.strength:g}: {point.effect.mean:+.2f} at {point.ratio.mean:.2f}" for point in curve.points
            )
            rank = "" if curve.rank_correlation is None else f"{curve.rank_correlation:.2f}"
            tips = "" if curve.tips_over is None else f"beyond {curve.tips_over:g}"
            rows.append((result.personality, curve.method, points, rank, tips))
    if not rows:
        return []
    note = "Strength: effect at perplexity ratio. Rank correlation (Spearman) of strength and effect, 0 included."
    return [note, "", *markdown(("personality", "method", "doses", "rank correlation", "tips over"), rows)]


def _style_table(evaluation: Evaluation) -> list[str]:
    counts = ("words", "emoji", "exclamation marks", "names the trait", "repeated runs of four words")
    heads = ("method", *counts, "distinct-1", "distinct-2", "unfinished")
    rows = []
    for name in evaluation.methods:
        found = [method for result in evaluation.personalities if (method := result.method(name))]
        rows.append((name, *(f"{np.mean(figures):.{digits}f}" for figures, digits in _style_figures(found))))
    return ["Mean an answer, over all personalities.", "", *markdown(heads, rows)]


def _style_figures(found: Sequence[MethodResult]) -> Iterator[tuple[list[float], int]]:
    """The columns of the table of style, each with how many digits it is given."""
    styles, fluencies = [method.style for method in found], [method.fluency for method in found]
    yield [style.words.mean for style in styles], 1
    yield [style.emoji.mean for style in styles], 2
    yield [style.exclamations.mean for style in styles], 2
    yield [style.trait_words.mean for style in styles], 3
    yield [fluency.repeated.mean for fluency in fluencies], 3
    yield [fluency.distinct_1 for fluency in fluencies], 2
    yield [fluency.distinct_2 for fluency in fluencies], 2
    yield [fluency.unfinished for fluency in fluencies], 3


def _seed_table(evaluation: Evaluation) -> list[str]:
    if not evaluation.seeds:
        return []
    seeds = list(dict.fromkeys(found.seed for found in evaluation.seeds))
    rows = []
    for result in evaluation.personalities:
        of_seed = {found.seed: found for found in evaluation.seeds if found.personality == result.personality}
        if not of_seed:
            continue
        cells = [f"{of_seed[s].effect} at {of_seed[s].ratio.mean:.2f}" if s in of_seed else "" for s in seeds]
        spread = float(np.std([found.effect.mean for found in of_seed.values()], ddof=1)) if len(of_seed) > 1 else 0.0
        rows.append((result.personality, *cells, f"{spread:.3f}"))
    note = (
        "Effect of the adapter at perplexity ratio, made anew with other identification questions and personas by the "
        "same method and dose; the first is the one in the tables above. Spread: standard deviation over seeds."
    )
    return [note, "", *markdown(("personality", *(f"seed {seed}" for seed in seeds), "spread"), rows)]


def _notes(evaluation: Evaluation, versions: str) -> list[str]:
    return [*(f"- {line}" for line in certainty_lines(evaluation)), *([f"- Versions: {versions}."] if versions else [])]
