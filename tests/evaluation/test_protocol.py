"""The evaluation of one personality on a tiny model: who is asked what, and figures known digit for digit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from scipy import stats
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.judgement import Judgement
from npti_export.evaluation.placebo import placebo_of
from npti_export.evaluation.protocol import CONDITIONS, Report, evaluate
from npti_export.evaluation.report import judge_line, table_rows, to_json, to_markdown
from npti_export.identification.answers import Decoding, Prompt, generate_answers, prompt_ids
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole, Term
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
QUESTIONS = [Question("openness", f"{what}?") for what in ("Art", "A long walk", "Tea", "Why not", "Who")]
TEXTS = [question.text for question in QUESTIONS]
PERSONAS = [
    Persona("openness", Pole.HIGH, "You dream."),
    Persona("openness", Pole.HIGH, "You invent."),
    Persona("openness", Pole.LOW, "You count."),
]
HIGH, LOW = Term("openness", Pole.HIGH), Term("openness", Pole.LOW)
DECODING = Decoding(max_new_tokens=16, repetition_penalty=1.15, batch_size=2)

Scores = list[float | None]
SCORES: list[Scores] = [
    [1.0, 2.0, 3.0, 4.0, 2.0],  # unsteered
    [3.0, 3.0, None, 5.0, 2.0],  # adapter
    [1.0, 2.0, 4.0, 4.0, None],  # placebo
    [5.0, 5.0, 5.0, 5.0, 5.0],  # persona prompt
]


class ScriptedJudge:
    """Gives known scores, call by call; keeps what it was shown."""

    lowest, highest, name = 1.0, 5.0, "scripted"

    def __init__(self, scores: list[Scores]) -> None:
        self.scores = iter(scores)
        self.shown: list[tuple[list[str], list[str]]] = []

    def judge(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.shown.append((list(questions), list(answers)))
        return [
            Judgement(question, answer, "openness", self.name, score, "", None if score else "it refused")
            for question, answer, score in zip(questions, answers, next(self.scores), strict=True)
        ]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def adapter(model: LlamaForCausalLM) -> PersonalityAdapter:
    return make_adapter(model)


def evaluated(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, term: Term, scores: list[Scores] = SCORES
) -> tuple[Report, ScriptedJudge]:
    judge = ScriptedJudge(scores)
    report = evaluate(model, TOKENIZER, adapter, term, QUESTIONS, PERSONAS, judge, DECODING, seed=3)
    return report, judge


def interval(values: list[float]) -> tuple[float, float]:
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=3).confidence_interval
    return found.low, found.high


def shown(mean: float, values: list[float]) -> str:
    low, high = interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def slow_nll(model: LlamaForCausalLM, question: str, token_ids: Sequence[int]) -> float:
    prompt = prompt_ids(Prompt(question), TOKENIZER)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *token_ids]]), use_cache=False).logits[0].double()
    logarithms = torch.log_softmax(logits, -1)
    return -float(np.mean([logarithms[len(prompt) - 1 + at, token] for at, token in enumerate(token_ids)]))


def expected_tokens(model: LlamaForCausalLM, adapter: PersonalityAdapter, term: Term) -> dict[str, list[list[int]]]:
    """What each condition says, asked one question at a time."""

    def one_by_one(prompts: Sequence[Prompt]) -> list[list[int]]:
        return [list(generate_answers(model, TOKENIZER, [prompt], DECODING)[0].token_ids) for prompt in prompts]

    plain = [Prompt(text) for text in TEXTS]
    rng = random.Random("prompt 3")
    of_pole = [persona.text for persona in PERSONAS if persona.pole is term.pole]
    tokens = {"unsteered": one_by_one(plain)}
    for name, steering in (("adapter", adapter), ("placebo", placebo_of(adapter, "openness", 3))):
        with load_personality(model, f"openness{term.pole.sign}", steering):
            tokens[name] = one_by_one(plain)
    tokens["persona prompt"] = one_by_one([Prompt(text, rng.choice(of_pole)) for text in TEXTS])
    return tokens


@pytest.mark.parametrize("term", [HIGH, LOW], ids=["high", "low"])
def test_each_condition_is_asked_the_same_questions(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, term: Term
) -> None:
    report, judge = evaluated(model, adapter, term)
    expected = expected_tokens(model, adapter, term)
    said = {
        condition: [TOKENIZER.decode(tokens, skip_special_tokens=True).strip() for tokens in rows]
        for condition, rows in expected.items()
    }
    assert {condition: list(result.answers) for condition, result in report.results.items()} == said
    assert judge.shown == [(TEXTS, said[condition]) for condition in CONDITIONS]
    assert len({tuple(answers) for answers in said.values()}) == len(CONDITIONS)
    assert report.questions == tuple(TEXTS)


def test_the_table_is_known_digit_for_digit(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    report, _ = evaluated(model, adapter, HIGH)
    tokens = expected_tokens(model, adapter, HIGH)
    nll = {
        condition: np.array([slow_nll(model, text, row) for text, row in zip(TEXTS, rows, strict=True)])
        for condition, rows in tokens.items()
    }
    ratios = {}
    for condition in CONDITIONS[1:]:
        rise = nll[condition] - nll["unsteered"]
        low, high = interval(rise.tolist())
        ratios[condition] = f"{np.exp(rise.mean()):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"
    assert table_rows([report]) == [
        ("openness+", "unsteered", "2.40", "", "", ""),
        # 3 3 – 5 2 against 1 2 – 4 2
        ("openness+", "adapter", "3.25", shown(1.0, [2.0, 1.0, 1.0, 0.0]), ratios["adapter"], "1"),
        ("openness+", "placebo", "2.75", shown(0.25, [0.0, 0.0, 1.0, 0.0]), ratios["placebo"], "1"),
        (
            "openness+",
            "persona prompt",
            "5.00",
            shown(2.6, [4.0, 3.0, 2.0, 1.0, 3.0]),
            ratios["persona prompt"],
            "",
        ),
    ]
    low, high = interval([3.0, 3.0, 5.0, 2.0])
    adapter_result = report.results["adapter"]
    assert (adapter_result.score.low, adapter_result.score.high) == pytest.approx((low, high))
    assert judge_line(report) == "Judge scripted, 1 to 5; 5 questions; bootstrap over questions."


def test_towards_the_low_pole_a_lower_score_is_the_effect(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    high, _ = evaluated(model, adapter, HIGH)
    low, _ = evaluated(model, adapter, LOW)
    for condition in CONDITIONS:
        one, other = high.results[condition], low.results[condition]
        assert other.score == one.score
        assert other.effect.mean == -one.effect.mean
    assert low.results["adapter"].effect.mean == -1.0


def test_a_failure_is_counted_and_never_scored(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    report, _ = evaluated(model, adapter, HIGH)
    assert {name: result.failed for name, result in report.results.items()} == {
        "unsteered": 0,
        "adapter": 1,
        "placebo": 1,
        "persona prompt": 0,
    }
    whole = [[3.0 if score is None else score for score in scores] for scores in SCORES]
    without, _ = evaluated(model, adapter, HIGH, whole)
    assert without.results["adapter"].score.mean != report.results["adapter"].score.mean
    # Without a score of the unsteered model there is no difference either, but a mean there is.
    scores: list[Scores] = [[None, 2.0, 3.0, 4.0, 2.0], *SCORES[1:]]
    partly, _ = evaluated(model, adapter, HIGH, scores)
    assert partly.results["adapter"].score == report.results["adapter"].score
    assert partly.results["adapter"].effect.mean == pytest.approx((1 + 1 + 0) / 3)


def test_a_judge_that_says_nothing_under_a_condition_is_an_error(
    model: LlamaForCausalLM, adapter: PersonalityAdapter
) -> None:
    with pytest.raises(NptiError, match=r"^The judge gave no score under placebo \(it refused\)\.$"):
        evaluated(model, adapter, HIGH, [SCORES[0], SCORES[1], [None] * 5, SCORES[3]])


def test_what_cannot_be_evaluated_is_refused_before_anything_is_asked(
    model: LlamaForCausalLM, adapter: PersonalityAdapter
) -> None:
    asked: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: asked.append(1))
    try:
        judge = ScriptedJudge(SCORES)
        with pytest.raises(NptiError, match="there is no trait 'extraversion'"):
            evaluate(model, TOKENIZER, adapter, Term("extraversion", Pole.HIGH), QUESTIONS, PERSONAS, judge)
        with pytest.raises(NptiError, match=r"openness-: 5 questions and 0 personas of its pole"):
            evaluate(model, TOKENIZER, adapter, LOW, QUESTIONS, PERSONAS[:2], judge)
        with pytest.raises(NptiError, match=r"openness\+: 0 questions and 2 personas"):
            evaluate(model, TOKENIZER, adapter, HIGH, [], PERSONAS, judge)
    finally:
        hook.remove()
    assert asked == []


def test_the_model_is_left_as_it_was(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    ids = torch.arange(20)[None] + 6
    with torch.no_grad():
        before = model(input_ids=ids).logits
        evaluated(model, adapter, HIGH)
        after = model(input_ids=ids).logits
    assert torch.equal(before, after)


def test_the_same_evaluation_gives_the_same_report(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    progress: list[int] = []
    reports = [
        evaluate(
            model, TOKENIZER, adapter, HIGH, QUESTIONS, PERSONAS, ScriptedJudge(SCORES), DECODING, 3, progress.append
        )
        for _ in range(2)
    ]
    assert reports[0] == reports[1]
    assert sum(progress) == 2 * 4 * len(QUESTIONS)


def test_what_a_report_becomes(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    report, _ = evaluated(model, adapter, HIGH)
    scores = report.scores()
    assert (scores["questions"], scores["judge"]) == (5, "scripted")
    low, high = interval([2.0, 1.0, 1.0, 0.0])
    assert scores["effect"] == pytest.approx([1.0, low, high], abs=1e-4)
    assert scores["placebo"][0] == 0.25  # type: ignore[index]
    assert scores["prompt"][0] == 2.6  # type: ignore[index]
    read = json.loads(json.dumps(to_json(report)))
    assert read["results"]["adapter"]["judgements"][2]["failure"] == "it refused"
    assert read["results"]["placebo"]["answers"] == list(report.results["placebo"].answers)
    lines = to_markdown([report]).splitlines()
    assert lines[0].startswith("| personality | condition | score |")
    assert lines[3] == "| " + " | ".join(table_rows([report])[1]) + " |"
    assert lines[-1] == f"openness+: {judge_line(report)}"
