"""Judges of a known rule, asked over real HTTP, give the known table, digit for digit."""

from __future__ import annotations

import re
import statistics

import numpy as np
import pytest
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from judge_server import SECRET, Asked, JudgeServer, serving
from scipy import stats

from npti_export.evaluation.answering import Asker
from npti_export.evaluation.judges.openai_judge import OpenAIJudge
from npti_export.evaluation.methods import Rivals, methods_of
from npti_export.evaluation.report.table import columns, judge_lines, table_rows
from npti_export.evaluation.results import Evaluation
from npti_export.evaluation.side_by_side import Exam, Subject, evaluate
from npti_export.identification.answers import Decoding
from npti_export.traits import Pole, Term, trait_named
from npti_export.traits.material import Persona, Question

SEED = 3
TRAIT = trait_named("openness")
QUESTIONS = [Question("openness", f"{what}?") for what in ("Art", "A walk", "Tea", "Why", "Who", "When", "Or not")]
PERSONAS = [Persona("openness", pole, f"You are {pole}.") for pole in Pole]


def known(model: str, criterion: str, answer: str) -> int | None:
    """Fluency by length; the trait by capital letters, turned round by the cruel judge, and a z is not rated."""
    if criterion == "fluency":
        return 1 + len(answer) % 5
    if model == "kind" and "z" in answer:
        return None
    score = 1 + sum(map(str.isupper, answer)) % 5
    return score if model == "kind" else 6 - score


def rule(asked: Asked) -> int | None:
    match = re.search(r"<answer>\n(.*)\n</answer>", asked.material, re.DOTALL)
    assert match is not None
    return known(asked.model, "fluency" if "its fluency" in asked.rubric else "trait", match[1])


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    model, tokenizer = tiny_chat_model(context=256), tiny_tokenizer()
    adapter = make_adapter(model)
    terms = [Term("openness", pole) for pole in Pole]
    subjects = [Subject(term, methods_of(term, TRAIT, adapter, PERSONAS, Rivals(), SEED)) for term in terms]
    with pytest.MonkeyPatch.context() as patch, serving(JudgeServer(rule)) as server:
        patch.setenv("OPENAI_API_KEY", SECRET)
        patch.setenv("NO_PROXY", "127.0.0.1")
        judges = [
            OpenAIJudge(TRAIT, model_name, server.url, criterion=criterion)
            for model_name in ("kind", "cruel")
            for criterion in ("trait", "fluency")
        ]
        asker = Asker(model, tokenizer, Decoding(max_new_tokens=12, repetition_penalty=1.15, batch_size=4))
        return evaluate(asker, subjects, Exam({"openness": QUESTIONS}, {"openness": judges}, seed=SEED))


def effect_shown(scores: list[int | None], unsteered: list[int | None], sign: int) -> str:
    both = [
        sign * (score - base)
        for score, base in zip(scores, unsteered, strict=True)
        if score is not None and base is not None
    ]
    resampled = stats.bootstrap((both,), np.mean, n_resamples=2000, method="percentile", rng=SEED)
    low, high = resampled.confidence_interval
    return f"{statistics.fmean(both):+.2f} [{low:+.2f}, {high:+.2f}]"


def test_the_table_is_the_known_one_digit_for_digit(evaluation: Evaluation) -> None:
    expected, failures = [], 0
    for result in evaluation.personalities:
        sign = 1 if result.pole is Pole.HIGH else -1
        for method in result.methods:
            for judge in ("kind", "cruel"):
                scores = [known(judge, "trait", answer) for answer in method.answers]
                base = [known(judge, "trait", answer) for answer in result.methods[0].answers]
                there = [score for score in scores if score is not None]
                failures += len(scores) - len(there)
                expected.append(
                    {
                        "personality": result.personality,
                        "method": f"{method.method} (openai:{judge})",
                        "score": f"{statistics.fmean(there):.2f}",
                        "variance": f"{statistics.variance(there):.3f}",
                        "effect [95 %]": "" if method.method == "unsteered" else effect_shown(scores, base, sign),
                        "fluency": f"{statistics.fmean(1 + len(answer) % 5 for answer in method.answers):.2f}",
                        "failed": str(len(scores) - len(there)) if len(there) < len(scores) else "",
                    }
                )
    rows = [dict(zip(columns(evaluation), row, strict=True)) for row in table_rows(evaluation)]
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    # It is no table of one figure.
    assert len({row["score"] for row in expected}) > 5
    assert failures
    assert f"openai:kind, 1 to 5; no score: the judge refused {failures} times." in judge_lines(evaluation)[0]


def test_the_agreement_is_the_known_one(evaluation: Evaluation) -> None:
    told = {
        (question, answer)
        for result in evaluation.personalities
        for method in result.methods
        for question, answer in zip(result.questions, method.answers, strict=True)
    }
    pairs = [(known("kind", "trait", answer), known("cruel", "trait", answer)) for _, answer in told]
    rated = [(one, other) for one, other in pairs if one is not None and other is not None]
    values = [value for pair in rated for value in pair]
    observed = sum(2 * (one - other) ** 2 for one, other in rated) / len(values)
    expected = sum((a - b) ** 2 for a in values for b in values) / (len(values) * (len(values) - 1))
    trait, fluency = evaluation.agreement
    assert (trait.judges, trait.criterion, trait.answers) == (("openai:kind", "openai:cruel"), "trait", len(rated))
    assert trait.spearman == pytest.approx(-1.0)
    assert trait.alpha == pytest.approx(1 - observed / expected)
    assert (fluency.criterion, fluency.spearman, fluency.answers) == ("fluency", pytest.approx(1.0), len(told))
    assert fluency.alpha == pytest.approx(1.0)
