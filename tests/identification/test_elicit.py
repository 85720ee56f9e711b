"""Transcripts are kept as they come: a run that was killed goes on, and gives what an unbroken one gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_models import tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from npti_export.errors import NptiError
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.elicit import Transcript, elicit, plan, read_transcripts, write_transcripts
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

QUESTIONS = [Question("openness", f"{what}?") for what in ("Art", "A long walk", "Tea", "Why not", "Who")]
PERSONAS = [
    Persona("openness", Pole.HIGH, "You dream."),
    Persona("openness", Pole.HIGH, "You invent."),
    Persona("openness", Pole.LOW, "You count."),
    Persona("openness", Pole.LOW, "You file."),
]
PLANNED = plan(QUESTIONS, PERSONAS, seed=0)
DECODING = Decoding(max_new_tokens=8, repetition_penalty=1.1, batch_size=3)
BATCHES = 4  # of 10 questions in character
WHOLE = {
    "trait": "openness",
    "pole": "high",
    "question": "Q?",
    "persona": "P.",
    "answer": "A.",
    "token_ids": [4, 5],
    "finished": True,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def asked(model: LlamaForCausalLM, work: list[int]) -> None:
    """Notes in ``work`` how many rows each ``generate`` call starts with."""

    def note(_module: object, _arguments: object, keywords: dict[str, object]) -> None:
        ids = keywords["input_ids"]
        if ids.shape[1] > 1:  # the prompt, not a step behind it
            work.append(ids.shape[0])

    model.register_forward_pre_hook(note, with_kwargs=True)


def test_each_question_is_asked_once_at_each_pole_with_a_persona_of_that_pole() -> None:
    assert [question for question, _ in PLANNED] == [question for question in QUESTIONS for _ in Pole]
    assert [persona.pole for _, persona in PLANNED] == [Pole.HIGH, Pole.LOW] * len(QUESTIONS)
    assert plan(QUESTIONS, PERSONAS, seed=0) == PLANNED
    assert len({tuple(p.text for _, p in plan(QUESTIONS, PERSONAS, seed)) for seed in range(5)}) > 1
    with pytest.raises(NptiError, match="There are 2 personas but none of the low pole"):
        plan(QUESTIONS, PERSONAS[:2], seed=0)


def test_transcripts_are_the_answers_in_character(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    transcripts = elicit(model, tokenizer, PLANNED, decoding=DECODING)
    prompts = [Prompt(question.text, persona.text) for question, persona in PLANNED]
    expected = generate_answers(model, tokenizer, prompts, DECODING)
    for (question, persona), transcript, answer in zip(PLANNED, transcripts, expected, strict=True):
        assert transcript == Transcript(
            "openness", persona.pole, question.text, persona.text, answer.text, answer.token_ids, answer.finished
        )


@pytest.mark.parametrize("killed_after", range(BATCHES))
def test_a_run_that_was_killed_goes_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, killed_after: int) -> None:
    model = tiny_chat_model()
    whole = elicit(model, tokenizer, PLANNED, decoding=DECODING)
    kept = tmp_path / "deep" / "kept.jsonl"
    told: list[int] = []

    def kill(done: int) -> None:
        told.append(done)
        if len(told) > killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        elicit(model, tokenizer, PLANNED, kept, DECODING, kill)
    assert len(read_transcripts(kept)) == sum(told) == min(10, 3 * (killed_after + 1))

    work: list[int] = []
    asked(model, work)
    progress: list[int] = []
    assert elicit(model, tokenizer, PLANNED, kept, DECODING, progress.append) == whole
    assert sum(work) == 10 - sum(told)
    assert progress == [3, 3, 3, 1]
    assert sorted(map(repr, read_transcripts(kept))) == sorted(map(repr, whole))


@pytest.mark.parametrize("cut", [1, 2, 60], ids=["line feed", "brace", "half a line"])
def test_a_last_line_that_a_kill_cut_is_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cut: int) -> None:
    model = tiny_chat_model()
    kept = tmp_path / "kept.jsonl"
    whole = elicit(model, tokenizer, PLANNED, kept, DECODING)
    kept.write_bytes(kept.read_bytes()[:-cut])
    left = 10 if cut == 1 else 9
    assert len(read_transcripts(kept)) == left

    for lines in (10, 10):  # once more, to see that nothing was appended to half a line
        assert elicit(model, tokenizer, PLANNED, kept, DECODING) == whole
        assert len(kept.read_bytes().splitlines()) == lines


@pytest.mark.parametrize("left", [b"", b"{", b'{"trait": "openness", "po'], ids=["nothing", "brace", "half a line"])
def test_half_of_the_first_line_is_not_joined_to_the_next(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, left: bytes
) -> None:
    """A first answer longer than the buffer is written in parts, and so is one on a disk that fills up."""
    model = tiny_chat_model()
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(left)
    whole = elicit(model, tokenizer, PLANNED, kept, DECODING)
    assert sorted(map(repr, read_transcripts(kept))) == sorted(map(repr, whole))
    work: list[int] = []
    asked(model, work)
    assert elicit(model, tokenizer, PLANNED, kept, DECODING) == whole
    assert work == []


def test_a_last_line_cut_within_a_character_is_dropped(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    transcript = Transcript("openness", Pole.HIGH, "Q?", "P.", "déjà vu", (4, 5), True)
    write_transcripts(kept, [transcript, transcript])
    assert read_transcripts(kept) == [transcript, transcript]
    data = kept.read_bytes()
    kept.write_bytes(data[: data.rindex("é".encode()) + 1])
    assert read_transcripts(kept) == [transcript]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        "7",
        "[" * 2_000,
        '{"pole": "high"}',
        '{"pole": "middle"}',
        '{"pole": "high", "token_ids": ["x"]}',
        json.dumps(WHOLE | {"pole": "middle"}),
        json.dumps(WHOLE | {"token_ids": [4, "5"]}),
        json.dumps(WHOLE | {"finished": "no"}),
        json.dumps(WHOLE | {"answer": None}),
        json.dumps(WHOLE | {"answer": "\ud83d"}),
    ],
)
def test_a_broken_line_in_the_middle_is_named(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, broken: str
) -> None:
    kept = tmp_path / "kept.jsonl"
    transcript = Transcript("openness", Pole.HIGH, "Q?", "P.", "A.", (4, 5), True)
    write_transcripts(kept, [transcript, transcript])
    first, second = kept.read_text().splitlines()
    text = f"{first}\n{broken}\n{second}\n"
    kept.write_text(text)
    with pytest.raises(NptiError, match=r"kept\.jsonl, line 2: no transcript .*; mend or remove the file\.$"):
        elicit(model, tokenizer, PLANNED, kept, DECODING)
    assert kept.read_text() == text


def test_answers_to_other_prompts_are_not_taken(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_chat_model()
    kept = tmp_path / "kept.jsonl"
    others = plan(QUESTIONS, [Persona("openness", pole, f"You are {pole}.") for pole in Pole], seed=0)
    elicit(model, tokenizer, others, kept, DECODING)
    work: list[int] = []
    asked(model, work)
    transcripts = elicit(model, tokenizer, PLANNED, kept, DECODING)
    assert sum(work) == 10
    assert {t.persona for t in transcripts} <= {persona.text for persona in PERSONAS}


def test_a_transcript_is_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "openness.jsonl"
    write_transcripts(path, [Transcript("openness", Pole.LOW, "Q?", "P.", "A\n\u2028 ü.", (4, 1), True)])
    [line] = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert json.loads(line) == {
        "trait": "openness",
        "pole": "low",
        "question": "Q?",
        "persona": "P.",
        "answer": "A\n\u2028 ü.",
        "token_ids": [4, 1],
        "finished": True,
    }
    assert [file.name for file in path.parent.iterdir()] == ["openness.jsonl"]
