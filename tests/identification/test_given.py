"""Transcripts that exist: read from anywhere, turned into this model's tokens, and measured as if it had said them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from identify_process import TOKENIZER, chat_model, contents, personas, questions, run
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.identification.answers import Prompt, prompt_ids
from npti_export.identification.files import TraitFiles
from npti_export.identification.given import read_given
from npti_export.identification.measure import measure
from npti_export.identification.stages import run_elicit, run_given_and_measure, run_measure
from npti_export.pipeline import HELD_BACK, plan_traits, work_with
from npti_export.traits import Pole

STATISTICS = ("statistics/openness_high.safetensors", "statistics/openness_low.safetensors")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return chat_model()


def written(folder: Path, records: list[dict[str, object]]) -> Path:
    path = folder / "given.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def answers(count: int = 20, same_questions: bool = True) -> list[dict[str, object]]:
    """High answers first, then low ones, without personas."""
    return [
        {"pole": pole, "question": f"{'Q' if same_questions else pole.upper()}{at}?", "answer": f"{pole} {at} {at % 3}"}
        for pole in Pole
        for at in range(count)
    ]


def test_the_transcripts_of_identification_give_its_statistics(model: LlamaForCausalLM, tmp_path: Path) -> None:
    material = plan_traits(["openness"], questions, personas)["openness"]
    work = work_with(model, TOKENIZER, batch_size=8)
    made, taken = TraitFiles(tmp_path / "made", "openness"), TraitFiles(tmp_path / "taken", "openness")
    elicited = run_elicit(work, made, material)
    run_measure(work, made)
    given = read_given(made.transcripts, "openness", model, TOKENIZER)
    assert given == elicited
    transcripts, statistics, measurement = run_given_and_measure(work, taken, given)
    assert transcripts == elicited
    for name in (*STATISTICS, "transcripts/openness.jsonl"):
        assert contents(tmp_path / "taken")[name] == contents(tmp_path / "made")[name]
    assert measurement.transcripts == 12
    assert statistics[Pole.HIGH].whole.tokens == sum(len(t.token_ids) - 1 for t in elicited if t.pole is Pole.HIGH)

    before = contents(tmp_path / "taken")
    steps: list[int] = []
    run_given_and_measure(work, taken, given, steps.append)
    assert (steps, contents(tmp_path / "taken")) == ([], before)


def test_without_personas_the_question_stands_alone(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = written(tmp_path, answers(4))
    given = read_given(path, "openness", model, TOKENIZER)
    assert {t.persona for t in given} == {""}
    work = work_with(model, TOKENIZER)
    high = [t for t in given if t.pole is Pole.HIGH]
    counted = measure(model, TOKENIZER, work.sites, high).whole

    active = np.zeros(sum(site.width for site in work.sites), dtype=np.int64)
    for transcript in high:
        prompt = prompt_ids(Prompt(transcript.question), TOKENIZER)
        seen: list[np.ndarray] = []
        hooks = [
            site.watch(lambda _m, _a, output: seen.append((output[0, len(prompt) :] > 0).sum(0).numpy()))  # noqa: B023
            for site in work.sites
        ]
        model(input_ids=model.dummy_inputs["input_ids"].new_tensor([[*prompt, *transcript.token_ids[:-1]]]))
        for hook in hooks:
            hook.remove()
        active += np.concatenate(seen)
    assert np.array_equal(counted.active, active)


def test_tokens_of_another_model_are_not_taken(model: LlamaForCausalLM, tmp_path: Path) -> None:
    [mine, others, none] = (
        {"pole": "high", "question": f"{at}?", "answer": "ab", "token_ids": tokens}
        for at, tokens in enumerate([TOKENIZER.convert_tokens_to_ids([*"ab", "<|end|>"]), [7, 8, 1], [10**9]])
    )
    low = {"pole": "low", "question": "Q?", "answer": "c", "finished": False, "persona": "You.", "trait": "openness"}
    other_trait = {"pole": "low", "question": "Q?", "answer": "c", "trait": "neuroticism"}
    given = read_given(written(tmp_path, [mine, others, none, low, other_trait]), "openness", model, TOKENIZER)
    assert {t.token_ids for t in given if t.pole is Pole.HIGH} == {tuple(mine["token_ids"])}
    [of_low] = [t for t in given if t.pole is Pole.LOW]
    assert (of_low.persona, of_low.finished) == ("You.", False)
    assert of_low.token_ids == tuple(TOKENIZER.convert_tokens_to_ids([*"c"]))


@pytest.mark.parametrize("same_questions", [True, False])
def test_every_stretch_and_every_half_holds_both_poles(
    model: LlamaForCausalLM, tmp_path: Path, same_questions: bool
) -> None:
    given = read_given(written(tmp_path, answers(20, same_questions)), "openness", model, TOKENIZER)
    place = {question: at for at, question in enumerate(dict.fromkeys(t.question for t in given))}
    for begin in range(0, len(place), 4):
        assert {t.pole for t in given if begin <= place[t.question] < begin + 4} == set(Pole)
    of_halves = Counter((t.pole, place[t.question] % 2) for t in given)
    assert of_halves == {(pole, half): 10 for pole in Pole for half in (0, 1)}


def test_what_is_null_is_as_if_it_were_not_there(model: LlamaForCausalLM, tmp_path: Path) -> None:
    nulls = [record | {"trait": None, "persona": None} for record in answers(3)]
    given = read_given(written(tmp_path, nulls), "openness", model, TOKENIZER)
    assert given == read_given(written(tmp_path, answers(3)), "openness", model, TOKENIZER)
    assert len(given) == 6


def test_more_answers_of_one_pole_than_of_the_other(model: LlamaForCausalLM, tmp_path: Path) -> None:
    records = answers(30, same_questions=False)[: 30 + 6]
    work = work_with(model, TOKENIZER)
    files = TraitFiles(tmp_path / "a", "openness")
    given = read_given(written(tmp_path, records), "openness", model, TOKENIZER)
    _, statistics, measurement = run_given_and_measure(work, files, given)
    assert [statistics[pole].whole.answers for pole in Pole] == [30, 6]
    assert measurement.curve[-1].questions == 36
    assert statistics[Pole.LOW].stream is not None


@pytest.mark.slow
def test_identify_from_given_answers(tmp_path: Path) -> None:
    path = written(tmp_path, answers(20))
    found = run(tmp_path / "a", transcripts=path, personas=None)
    record = PersonalityAdapter.from_pretrained(tmp_path / "a").traits["openness"]
    assert record.identification.transcripts == 40
    assert all(pole.calibrated for pole in record.poles.values())
    assert found.auc["openness"] > 0.9  # the words high and low are in the answers
    before = contents(tmp_path / "a")
    run(tmp_path / "a", transcripts=path, personas=None)
    assert contents(tmp_path / "a") == before
    with pytest.raises(NptiError, match=f"leave 1 questions unanswered, and {HELD_BACK} are needed"):
        run(tmp_path / "b", transcripts=path, questions=lambda trait: questions(trait)[:1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"pole": "middle", "question": "Q?", "answer": "a"}', "the pole is 'middle'; high or low is expected"),
        ('{"question": "Q?", "answer": "a"}', "the pole is None"),
        ('{"pole": "high", "answer": "a"}', "no text under the key 'question'"),
        ('{"pole": "high", "question": " ", "answer": "a"}', "the question is empty"),
        ('{"pole": "high", "question": "Q?", "response": "a"}', "no text under the key 'answer'"),
        (r'{"pole": "high", "question": "Q?", "answer": "\ud83d"}', "not JSON"),
        ('{"pole": "high", "question": "Q?", "answer": 3}', "no text under the key 'answer'"),
        ('{"pole": "high", "question": "Q?", "answer": "a", "persona": []}', "no text under the key 'persona'"),
        ('{"pole": "high", "question": "Q?", "answer": "a", "finished": 1}', "'finished' is 1"),
        ('{"pole": "high", "question": "Q0?", "answer": "high 0 0"}', "stands in an earlier line"),
        (json.dumps({"pole": "high", "question": "Q" * 60, "answer": "a"}), "fills the context"),
    ],
)
def test_broken_lines_are_named(model: LlamaForCausalLM, tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, answers(2))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(NptiError) as caught:
        read_given(path, "openness", model, TOKENIZER)
    assert said in str(caught.value)
    assert "fills" in said or f"{path}, line 5: " in str(caught.value)


def test_a_pole_without_answers(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(NptiError, match="holds no low answer for openness"):
        read_given(written(tmp_path, answers(2)[:2]), "openness", model, TOKENIZER)
