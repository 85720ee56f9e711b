"""Measures npti-demo: ``python -m npti_export.demo.report`` writes eval/results/demo_model.md.

Whether personas come through on questions and personas that were not in training, whether the model without a persona
stands between the poles, and whether it speaks or repeats itself. Variety is held against the training text twice:
greedy answers, which always say what goes best, and answers drawn from what the model learned, as that text was drawn
from what was written.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import Pipeline
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.cli.loading import load_model, stage
from npti_export.demo.corpus import Material, read_material, write_dialogues
from npti_export.evaluation.judges.local_judge import new_classifier
from npti_export.evaluation.protocol import EVALUATION_DECODING
from npti_export.identification.answers import Progress, Prompt, generate_answers, prompt_ids
from npti_export.traits import TRAITS, Pole
from npti_export.traits.material import shipped_personas, shipped_questions

TRAINING_DIALOGUES = 40_000
"""Dialogues that the classifiers learn from, about 3,000 answers a pole."""
DISTINCT_QUESTIONS = 1000
SAMPLES = 3


@dataclass(frozen=True)
class TraitFigures:
    """What was measured for one trait.

    Args:
        accuracy: Balanced accuracy of the classifier on answers with a persona of a known pole.
        auc: Area under its ROC curve there.
        neutral: Mean pole score of answers without a persona (0 low, 1 high).
        answers: Number of answers with a persona.
    """

    accuracy: float
    auc: float
    neutral: float
    answers: int


def training_answers(material: Material, dialogues: int, seed: int) -> dict[str, list[tuple[str, Pole]]]:
    """Answers as they stood in training, by trait, with their poles."""
    rng = random.Random(f"report {seed}")
    answers: dict[str, list[tuple[str, Pole]]] = {name: [] for name in TRAITS}
    for dialogue in islice(write_dialogues(material, rng), dialogues):
        for exchange in dialogue.exchanges:
            answers[exchange.trait].append((exchange.answer, exchange.pole))
    return answers


def train_classifier(answers: Sequence[tuple[str, Pole]]) -> Pipeline:
    """A text classifier of the two poles of a trait, trained on training texts alone."""
    return new_classifier().fit([text for text, _ in answers], [pole is Pole.HIGH for _, pole in answers])


def measure_trait(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    classifier: Pipeline,
    trait: str,
    progress: Progress,
) -> TraitFigures:
    """Asks the test questions with a persona of each pole and without any, and classifies the answers."""
    rng = random.Random(f"personas {trait}")
    questions = [question.text for question in shipped_questions(trait, "test")]
    personas = {pole: [p.text for p in shipped_personas(trait) if p.pole is pole] for pole in Pole}
    prompts = [Prompt(question, rng.choice(personas[pole])) for pole in Pole for question in questions]
    high = np.array([pole is Pole.HIGH for pole in Pole for _ in questions])
    said = generate_answers(model, tokenizer, prompts, EVALUATION_DECODING, progress)
    scores = classifier.predict_proba([answer.text for answer in said])[:, 1]
    neutral = generate_answers(model, tokenizer, [Prompt(q) for q in questions], EVALUATION_DECODING, progress)
    neutral_scores = classifier.predict_proba([answer.text for answer in neutral])[:, 1]
    return TraitFigures(
        float(balanced_accuracy_score(high, scores > 0.5)),
        float(roc_auc_score(high, scores)),
        float(neutral_scores.mean()),
        len(said),
    )


def draw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    seed: int,
    progress: Progress,
) -> list[str]:
    """Answers drawn from the model's own distribution: temperature 1, no penalty, nothing cut off."""
    torch.manual_seed(seed)
    generate: Any = model.generate
    most = EVALUATION_DECODING.max_new_tokens
    drawn = []
    for begin in range(0, len(prompts), EVALUATION_DECODING.batch_size):
        ids = [prompt_ids(prompt, tokenizer) for prompt in prompts[begin : begin + EVALUATION_DECODING.batch_size]]
        rows = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        said = generate(**rows, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=most)
        drawn += tokenizer.batch_decode(said[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        progress(len(ids))
    return drawn


def distinct_2(texts: Sequence[str], bigrams: int) -> float:
    """Share of different pairs of neighbouring words among the first so many.

    >>> distinct_2(["a b a b"], 3)
    0.6666666666666666
    """
    pairs = [pair for text in texts for words in [text.lower().split()] for pair in pairwise(words)]
    return len(set(pairs[:bigrams])) / len(pairs[:bigrams])


@click.command()
@click.option("--model", "model_name", help="Folder of the model; the bundled one unless given.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("eval/results/demo_model.md"), show_default=True
)
@click.option("--seed", default=0, show_default=True)
def main(model_name: str | None, output: Path, seed: int) -> None:
    """Measure npti-demo and write the report."""
    model, tokenizer = load_model(model_name, "cpu", "float32", quiet=True)
    answers = training_answers(read_material(), TRAINING_DIALOGUES, seed)
    figures = {}
    for trait in TRAITS:
        with stage(f"{trait}: answers", 3 * len(shipped_questions(trait, "test"))) as progress:
            figures[trait] = measure_trait(model, tokenizer, train_classifier(answers[trait]), trait, progress)
    questions = [q.text for trait in TRAITS for q in shipped_questions(trait, "identification")[:200]]
    prompts = [Prompt(question) for question in questions]
    with stage("distinct questions", 2 * DISTINCT_QUESTIONS) as progress:
        said = generate_answers(model, tokenizer, prompts, EVALUATION_DECODING, progress)
        drawn = draw_answers(model, tokenizer, prompts, seed, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    training = [text for written in answers.values() for text, _ in written]
    random.Random(f"training {seed}").shuffle(training)
    text = _page(figures, [answer.text for answer in said], drawn, training) + _samples(model, tokenizer, seed)
    output.write_text(text, encoding="utf-8")
    click.echo(text)


def _page(figures: dict[str, TraitFigures], said: list[str], drawn: list[str], training: list[str]) -> str:
    common, times = Counter(said).most_common(1)[0]
    lines = [
        "# npti-demo, measured",
        "",
        "Made by `python -m npti_export.demo.report`. Questions and personas are the shipped ones, none of which was",
        "in training; decoding is that of the evaluation (greedy, repetition penalty 1.15). The classifiers (TF-IDF of",
        "words and pairs, logistic regression) learned from training texts alone.",
        "",
        "| trait | answers with persona | balanced accuracy (≥ 0.90) | AUC | mean score without persona (0.3 to 0.7) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {trait} | {f.answers} | {f.accuracy:.3f} | {f.auc:.3f} | {f.neutral:.2f} |" for trait, f in figures.items()
    ]
    lines += [
        "",
        f"Of {len(said)} answers to distinct questions without persona the most common string makes up "
        f"{times / len(said):.1%} (goal ≤ 2 %): “{common}”",
        "",
        _variety("These answers", said, training),
        "",
        "Greedy decoding always says what goes best; the training text was drawn at random from all that may be said.",
        _variety("Answers to the same questions drawn at temperature 1", drawn, training),
        "",
    ]
    return "\n".join(lines)


def _variety(name: str, texts: list[str], training: list[str]) -> str:
    """Distinct-2 of texts beside that of as much training text."""
    bigrams = sum(max(0, len(text.split()) - 1) for text in texts)
    mine, theirs = distinct_2(texts, bigrams), distinct_2(training, bigrams)
    return (
        f"{name}: distinct-2 over {bigrams:,} pairs of words is {mine:.3f}, in as much training text {theirs:.3f}, "
        f"{mine / theirs - 1:+.0%} (goal within 20 %)."
    )


def _samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> str:
    """A page of unpicked answers: questions and personas drawn at random."""
    rng = random.Random(f"samples {seed}")
    lines = ["", "## Samples, unpicked", ""]
    for trait in TRAITS:
        for question in rng.sample(shipped_questions(trait, "test"), SAMPLES):
            personas = {pole: [p.text for p in shipped_personas(trait) if p.pole is pole] for pole in Pole}
            asked = [Prompt(question.text), *(Prompt(question.text, rng.choice(personas[pole])) for pole in Pole)]
            answers = generate_answers(model, tokenizer, asked, EVALUATION_DECODING)
            lines += [f"**{question.text}** ({trait})", ""]
            names = ("no persona", f"a persona of {trait}+", f"a persona of {trait}-")
            lines += [f"- {name}: {answer.text}" for name, answer in zip(names, answers, strict=True)] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
