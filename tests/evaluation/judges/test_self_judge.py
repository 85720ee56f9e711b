"""The model as its own judge: the expected rating, against a computation one row at a time, and always unsteered."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import RAISING_TEMPLATE, tiny_chat_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from npti_export.errors import NptiError
from npti_export.evaluation.judges.rubric import NUMBER_ALONE, material, rubric
from npti_export.evaluation.judges.self_judge import LEAST_PROBABILITY, SelfJudge, rating_tokens
from npti_export.steering.personality import load_personality
from npti_export.traits import Facet, Trait

TRAIT = Trait("dry_wit", "droll", "earnest", (Facet("dead_pan", "keeps a straight face", "grins"),))
TOKENIZER = tiny_tokenizer()
QUESTIONS = ["Art?", "A long walk in the rain?", "Tea?"]
ANSWERS = ["I dream of it!", "No.", ""]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model(context=4096)


def next_token(model: LlamaForCausalLM, text: str) -> np.ndarray:
    ids = TOKENIZER(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1].double().softmax(-1).numpy()


def slow_probabilities(model: LlamaForCausalLM, rubric_text: str, question: str, answer: str) -> list[float]:
    """A digit is written at once, or behind a blank; this tokenizer has no token for both."""
    prompt = f"<|system|>{rubric_text}<|end|><|user|>{material(question, answer)}<|end|><|assistant|>"
    first, second = next_token(model, prompt), next_token(model, prompt + " ")
    digits = [TOKENIZER.convert_tokens_to_ids(str(rating)) for rating in range(1, 6)]
    blank = TOKENIZER.convert_tokens_to_ids(" ")
    return [float(first[digit] + first[blank] * second[digit]) for digit in digits]


@pytest.mark.parametrize("criterion", ["trait", "fluency"])
def test_the_score_is_the_expected_rating(model: LlamaForCausalLM, criterion: str) -> None:
    judge = SelfJudge(TRAIT, model, TOKENIZER, criterion=criterion, batch_size=2)  # type: ignore[arg-type]
    told = f"{rubric(TRAIT, criterion)}\n\n{NUMBER_ALONE}"  # type: ignore[arg-type]
    progress: list[int] = []
    judgements = judge.judge(QUESTIONS, ANSWERS, progress.append)
    scored = 0
    for question, answer, judgement in zip(QUESTIONS, ANSWERS, judgements, strict=True):
        expected = slow_probabilities(model, told, question, answer)
        assert (judgement.question, judgement.answer) == (question, answer)
        assert (judgement.trait, judgement.judge, judgement.criterion) == ("dry_wit", "self", criterion)
        if sum(expected) < LEAST_PROBABILITY:
            assert judgement.score is None
            assert judgement.failure == (
                f"the model gives no rating: 1 to 5 have a probability of {sum(expected):.5f} together"
            )
        else:
            scored += 1
            assert judgement.score == pytest.approx(np.dot(range(1, 6), expected) / sum(expected), abs=1e-4)
            shown = [float(value) for value in re.findall(r"\d\.\d{3}", judgement.reason)]
            assert shown == pytest.approx(expected, abs=6e-4)
    assert scored
    assert sum(progress) == 3
    assert (judge.name, judge.lowest, judge.highest) == ("self", 1.0, 5.0)


def saying(probabilities: dict[str, float]) -> LlamaForCausalLM:
    """A model whose next token has known probabilities, whatever it is asked."""
    model = tiny_chat_model(context=4096)
    bias = torch.full((len(TOKENIZER),), -1e4)
    for token, probability in probabilities.items():
        bias[TOKENIZER.convert_tokens_to_ids(token)] = math.log(probability)
    model.lm_head.register_forward_hook(lambda module, arguments, logits: logits * 0 + bias)
    return model


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [
        ({"1": 0.1, "2": 0.2, "4": 0.7}, 3.3),
        ({"3": 0.02, "5": 0.02, "x": 0.96}, 4.0),
        ({"3": 0.004, "5": 0.004, "x": 0.992}, None),
        ({"x": 1.0}, None),
    ],
)
def test_a_model_of_known_probabilities(probabilities: dict[str, float], score: float | None) -> None:
    [judgement] = SelfJudge(TRAIT, saying(probabilities), TOKENIZER).judge(QUESTIONS[:1], ANSWERS[:1])
    if score is None:
        assert judgement.score is None
        assert judgement.failure is not None
        assert judgement.failure.startswith("the model gives no rating: 1 to 5 have a probability of 0.00")
    else:
        assert judgement.failure is None
        assert judgement.score == pytest.approx(score)


def test_a_model_whose_numbers_ran_over_is_an_error_and_no_long_answer() -> None:
    judge = SelfJudge(TRAIT, saying({"3": math.inf, "x": 1.0}), TOKENIZER)
    with pytest.raises(NptiError, match="gives nan for probabilities, so --judge self cannot read a rating"):
        judge.judge(QUESTIONS[:1], ANSWERS[:1])


def test_it_judges_unsteered_and_refuses_a_model_that_it_cannot_know_to_be(model: LlamaForCausalLM) -> None:
    question, answer = QUESTIONS[:1], ANSWERS[:1]
    before = SelfJudge(TRAIT, model, TOKENIZER).probabilities(question, answer)
    with load_personality(model, "openness+", make_adapter(model), positions="all") as personality:
        alone = SelfJudge(TRAIT, model, TOKENIZER)
        with pytest.raises(NptiError, match="a judge must be unsteered; unload it first"):
            alone.judge(question, answer)
        judge = SelfJudge(TRAIT, model, TOKENIZER, personality=personality)
        np.testing.assert_array_equal(judge.probabilities(question, answer), before)
        assert personality.spec == "openness+"
        # That the personality would have been heard:
        steered = slow_probabilities(model, f"{rubric(TRAIT)}\n\n{NUMBER_ALONE}", question[0], answer[0])
        assert np.abs(np.array(steered) - before[0]).max() > 1e-3


def test_without_a_system_role_the_rubric_stands_before_the_material(model: LlamaForCausalLM) -> None:
    judge = SelfJudge(TRAIT, model, tiny_tokenizer(RAISING_TEMPLATE))
    [found] = judge.probabilities(QUESTIONS[:1], ANSWERS[:1])
    told = f"{rubric(TRAIT)}\n\n{NUMBER_ALONE}\n\n{material(QUESTIONS[0], ANSWERS[0])}"
    digits = [TOKENIZER.convert_tokens_to_ids(str(rating)) for rating in range(1, 6)]
    prompt = f"<|user|>{told}<|end|><|assistant|>"
    expected = next_token(model, prompt)[digits] + (
        next_token(model, prompt)[TOKENIZER.convert_tokens_to_ids(" ")] * next_token(model, prompt + " ")[digits]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_context_without_room_for_the_rubric_is_refused_at_once() -> None:
    with pytest.raises(
        NptiError, match=r"rubric takes \d+ tokens and the model reads 510; --judge self needs an instr"
    ):
        SelfJudge(TRAIT, tiny_chat_model(context=512), TOKENIZER)


def test_an_answer_that_is_too_long_is_a_failure_of_its_own(model: LlamaForCausalLM) -> None:
    progress: list[int] = []
    judge = SelfJudge(TRAIT, model, TOKENIZER)
    long, short = judge.judge(["Art?", "Art?"], ["a" * 4096, "No."], progress.append)
    assert long.score is None
    assert long.failure == "the answer is too long to be judged: with the rubric it takes more than 4094 tokens"
    assert short == judge.judge(["Art?"], ["No."])[0]
    assert sum(progress) == 2


def tokenizer_of(*tokens: str, byte_level: bool) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace() if not byte_level else pre_tokenizers.ByteLevel(False)
    raw.decoder = decoders.Metaspace() if not byte_level else decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def test_all_spellings_of_a_rating_count_and_nothing_else() -> None:
    tokens = [
        "?",
        "1",
        "Ġ1",
        "2",
        "3",
        "Ġ3",
        "4",
        "5",
        "10",
        "Ġ15",
        "Three",
        "Ġfive",
        "Ġfiveteen",
        "Ċ2",
        "four",
        "one.",
    ]
    spelled = rating_tokens(tokenizer_of(*tokens, byte_level=True))
    assert [[tokens[number] for number in numbers] for numbers in spelled] == [
        ["1", "Ġ1"],
        ["2", "Ċ2"],
        ["3", "Ġ3", "Three"],
        ["4", "four"],
        ["5", "Ġfive"],
    ]
    tokens = ["?", "▁", "1", "▁1", "2", "3", "4", "5", "▁one"]
    spelled = rating_tokens(tokenizer_of(*tokens, byte_level=False))
    assert [tokens[number] for number in spelled[0]] == ["1", "▁1", "▁one"]


def test_a_tokenizer_without_digits_cannot_rate() -> None:
    with pytest.raises(NptiError, match="no single token for each of 1 to 5"):
        rating_tokens(tokenizer_of("?", "1", "2", "3", "4", "50", byte_level=True))
