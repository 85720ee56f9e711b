"""``npti-export demo``: all of it on the bundled model: find neurons, write the adapter, load, talk, switch, score."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

QUESTIONS = 60
"""Identification questions a pole at most; fewer are asked once the halves of the answers agree on delta."""
TEST_QUESTIONS = 40


@click.command("demo", epilog="Example: npti-export demo --trait openness")
@click.option("--trait", default="extraversion", show_default=True, help="Which trait.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the adapter here; a scratch folder unless given.")
@options.seed
@options.quiet
def command(trait: str, output: Path | None, seed: int, quiet: bool) -> None:
    """Run all of it on the bundled model, both ends of one trait, in a few minutes on two cores.

    Finds the trait's neurons, writes the adapter, switches the running model with it and back, bit for bit, scores it
    beside its controls, and ends with a table and three answers side by side.
    """
    from npti_export.traits import trait_named

    trait = trait_named(trait.lower()).name
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "npti-demo"
        _run(trait, folder, seed, quiet)


def _run(trait: str, folder: Path, seed: int, quiet: bool) -> None:
    began = time.monotonic()
    model, tokenizer = loading.load_model(None, "cpu", "float32", quiet)

    from npti_export.cli.eval import print_evaluation
    from npti_export.cli.generate import side_by_side
    from npti_export.evaluation.answering import Asker
    from npti_export.evaluation.dose.calibration import way_name
    from npti_export.evaluation.judges.local_judge import LocalJudge
    from npti_export.evaluation.methods import Rivals, methods_of
    from npti_export.evaluation.protocol import EVALUATION_DECODING
    from npti_export.evaluation.side_by_side import Exam, Subject, evaluate
    from npti_export.identification.answers import Prompt, generate_answers
    from npti_export.identification.elicit import read_transcripts
    from npti_export.identification.selector import AUTO, Selector
    from npti_export.pipeline import identify, transcripts_file
    from npti_export.steering.personality import load_personality
    from npti_export.traits import PersonalitySpec, Pole, Term, trait_named
    from npti_export.traits.material import shipped_personas, shipped_questions

    stage = partial(loading.stage, quiet=quiet)
    click.echo(
        f"1. Find the neurons of {trait}, and what steers it best (--method auto): up to {QUESTIONS} questions at each "
        "pole, answered in character."
    )
    found = identify(
        model,
        tokenizer,
        trait,
        folder,
        max_questions=QUESTIONS,
        selector=Selector(AUTO),
        seed=seed,
        stage=stage,
        warn=lambda message: loading.notice(f"Note: {message}", quiet),
    )
    record = found.adapter.traits[trait]
    reliability = record.identification.split_half_reliability
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    click.echo(f"   Split-half reliability of delta {reliability:.3f}; judge's AUC {found.auc[trait]:.3f}.")
    for pole, of_pole in record.poles.items():
        moved = f"{way_name(of_pole)}, gamma {of_pole.gamma:g}"
        click.echo(f"   {trait}{pole.sign}: {len(of_pole.neurons)} neurons found; steered by {moved}.")
    click.echo(f"   Adapter: {size:,} bytes, no weights.")

    click.echo("2. Load it, talk, switch, and switch back.")
    question = shipped_questions(trait, "test")[0].text
    answers = {}
    with load_personality(model, "neutral", found.adapter) as personality:
        for spec in ("neutral", f"{trait}+", f"{trait}-"):
            personality.set(spec)
            answers[spec] = generate_answers(model, tokenizer, [Prompt(question)], EVALUATION_DECODING)[0].text

    click.echo(f"3. Score both ends on {TEST_QUESTIONS} questions that identification never saw, beside the controls.")
    transcripts = read_transcripts(transcripts_file(folder, trait))
    exam = Exam(
        {trait: shipped_questions(trait, "test")[:TEST_QUESTIONS]}, {trait: [LocalJudge.train(transcripts)]}, seed=seed
    )
    subjects = [
        Subject(term, methods_of(term, trait_named(trait), found.adapter, shipped_personas(trait), Rivals(), seed))
        for term in (Term(trait, pole) for pole in Pole)
    ]
    asker = Asker(model, tokenizer, EVALUATION_DECODING)
    print_evaluation(evaluate(asker, subjects, exam, "npti-demo", stage=stage))
    click.echo(f"\n{question}")
    side_by_side(answers)
    after = generate_answers(model, tokenizer, [Prompt(question)], EVALUATION_DECODING)[0].text
    if after != answers[str(PersonalitySpec())]:
        raise NptiError("After unloading, the answer is not the same as before: the model was not left as it was.")
    click.echo(f"After unloading, the answer is the same as before. Everything took {time.monotonic() - began:.0f} s.")
