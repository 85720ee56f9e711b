"""The full report of an adapter: ten poles, all methods, doses, bleed, three seeds of identification.

    python eval/report.py

writes results.json, report.md, report.html and its pictures into eval/results/demo/, and takes about a quarter of an
hour on two cores. What was answered is kept in `.work` there: the same command goes on where it was stopped. `--model`,
`--adapter` and `--output` measure another one; `--card` puts the figures into the adapter, where npti-demo has those of
more questions from demo_adapter.py.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import find_adapter
from npti_export.cli import loading, options
from npti_export.errors import NptiError
from npti_export.evaluation.answering import Asker
from npti_export.evaluation.compare import paired_difference
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.intervals import bootstrap_mean, exponential
from npti_export.evaluation.judges.local_judge import LocalJudge
from npti_export.evaluation.methods import ADAPTER, UNSTEERED, Method, Rivals, methods_of
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.evaluation.report.card_scores import with_scores
from npti_export.evaluation.report.neurons_section import neurons_section
from npti_export.evaluation.report.report_files import write_report
from npti_export.evaluation.report.table import verdict_lines
from npti_export.evaluation.results import Evaluation, SeedResult
from npti_export.evaluation.rivals import made_anew, most_residual_answers, residual_alone
from npti_export.evaluation.scoring import scores_of
from npti_export.evaluation.side_by_side import DOSES, Exam, Subject, evaluate
from npti_export.identification.answers import Progress
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.files import TraitFiles, digest
from npti_export.identification.fit import fit_way
from npti_export.identification.questions import balanced
from npti_export.identification.stages import run_elicit_and_measure
from npti_export.pipeline import plan_traits, transcripts_file, work_with
from npti_export.steering.sites import base_model_id
from npti_export.traits import Pole, Term, trait_named
from npti_export.traits.material import shipped_personas, shipped_questions

OUTPUT = Path("eval/results/demo")
SEED_QUESTIONS = 60
"""Identification questions of each further seed; delta of 60 correlates above .99 with that of 300."""


@click.command()
@options.model
@options.adapter
@click.option("--questions", "count", type=click.IntRange(6), default=42, show_default=True, help="Of each trait.")
@click.option("--bleed-questions", type=click.IntRange(0), default=12, show_default=True, help="Of each other trait.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Of the identification questions.")
@click.option("--trait", "traits", multiple=True, help="Only these traits; all that the adapter holds unless given.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
@click.option("--card", is_flag=True, help="Put the figures into the adapter's config and model card.")
@options.device
@options.dtype
@options.batch_size
@options.seed
def main(
    model_name: str | None,
    adapter: str | None,
    count: int,
    bleed_questions: int,
    seeds: int,
    traits: tuple[str, ...],
    output: Path,
    card: bool,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
) -> None:
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet=False)
    folder = Path(adapter or find_adapter(base_model_id(model)))
    loaded = PersonalityAdapter.from_pretrained(folder)
    names = traits or tuple(loaded.traits)
    work = output / ".work"
    transcripts = {name: read_transcripts(transcripts_file(folder, name)) for name in names}
    judges = {name: LocalJudge.train(transcripts[name]) for name in names}
    decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
    questions = {name: balanced(shipped_questions(name, "test"), seed)[:count] for name in names}
    exam = Exam(questions, {name: [judges[name]] for name in names}, bleed_questions, DOSES, seed)

    subjects = []
    for name in names:
        residual = residual_of(model, tokenizer, folder, work, name, judges[name], batch_size)
        rivals = Rivals(tuple(transcripts[name]), residual)
        for pole in Pole:
            term = Term(name, pole)
            subjects.append(
                Subject(term, methods_of(term, trait_named(name), loaded, shipped_personas(name), rivals, seed))
            )
    command = shlex.join(["python", "eval/report.py", *sys.argv[1:]])
    asker = Asker(model, tokenizer, decoding, work / "answers.jsonl")
    found = evaluate(asker, subjects, exam, folder.name, command, loading.stage)
    found = replace(found, sections={"neurons": neurons_section(loaded)})
    write_report(output, found)

    steps = (seeds - 1) * len(names) * (4 * SEED_QUESTIONS + 4 * count)
    with loading.stage("other seeds", steps) as progress:
        results = first_seed(found, loaded)
        for other in range(1, seeds):
            for name in names:
                material = plan_traits([name], max_questions=SEED_QUESTIONS, seed=other)[name]
                files = TraitFiles(work / f"seed{other}", name)
                measuring = work_with(model, tokenizer, batch_size)
                answers, statistics, measured = run_elicit_and_measure(measuring, files, material, 1.0, progress)
                fit = partial(fit_way, model, tokenizer, transcripts=answers, batch_size=batch_size)
                anew = made_anew(loaded.traits[name], statistics, measured, fit)
                steering = PersonalityAdapter(loaded.base_model, {name: anew})
                terms = [Term(name, pole) for pole in Pole]
                results += [seed_result(asker, steering, term, other, exam, progress) for term in terms]
    found = replace(found, seeds=tuple(results))
    write_report(output, found)
    if card:
        with_scores(loaded, found).save_pretrained(folder)
    for line in verdict_lines(found):
        click.echo(line)


def residual_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    work: Path,
    name: str,
    judge: LocalJudge,
    batch_size: int,
) -> PersonalityAdapter:
    """The residual difference alone of one trait, layer and dose found on questions held back; kept once found."""
    measuring = work_with(model, tokenizer, batch_size)
    material = plan_traits([name])[name]
    with loading.stage(f"{name}: statistics", 2 * len(material.planned)) as progress:
        _, statistics, measured = run_elicit_and_measure(measuring, TraitFiles(folder, name), material, 1.0, progress)
    made_with = digest(measured, [question.text for question in material.held_back], batch_size)
    kept = work / f"residual_{name}_{made_with[:12]}"
    if (kept / "config.json").exists():
        return PersonalityAdapter.from_pretrained(kept)
    decoding = replace(EVALUATION_DECODING, batch_size=batch_size)
    held_back, layers = material.held_back, measuring.base_model.num_layers
    with loading.stage(f"{name}: residual alone", most_residual_answers(layers, len(held_back))) as progress:
        found = residual_alone(
            model, tokenizer, measuring.base_model, name, statistics, measured, held_back, judge, decoding, progress
        )
    found.save_pretrained(kept)
    return found


def first_seed(found: Evaluation, adapter: PersonalityAdapter) -> list[SeedResult]:
    """The adapter of the tables as the first of the seeds."""
    results = []
    for result in found.personalities:
        steered = result.method(ADAPTER)
        rating = None if steered is None else steered.rating()
        if steered is not None and rating is not None and rating.effect is not None:
            seed = adapter.traits[result.trait].identification.seed
            results.append(SeedResult(seed, result.personality, rating.effect, steered.fluency.ratio))
    return results


def seed_result(
    asker: Asker, steering: PersonalityAdapter, term: Term, seed: int, exam: Exam, progress: Progress
) -> SeedResult:
    """The effect of an adapter that was made with another seed, on the same questions."""
    texts, judge = exam.texts(term.trait), exam.judges[term.trait][0]
    said = [
        asker.ask(method, term, texts, exam.seed, progress)
        for method in (Method(UNSTEERED), Method(ADAPTER, steering=steering, strength=1.0))
    ]
    base, mine = (scores_of(judge.judge(texts, [answer.text for answer in answers])) for answers in said)
    nll = [answer_nll(asker.model, asker.tokenizer, texts, answers, asker.decoding.batch_size) for answers in said]
    direction = 1.0 if term.pole is Pole.HIGH else -1.0
    effect = paired_difference(direction * mine, direction * base, exam.seed)
    if effect is None:
        raise NptiError(f"{term}: the judge rated no answer of the adapter of seed {seed}.")
    ratio = exponential(bootstrap_mean(nll[1] - nll[0], exam.seed))
    return SeedResult(seed, f"{term.trait}{term.pole.sign}", effect, ratio)


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except NptiError as error:
        raise SystemExit(f"Error: {error}") from None
