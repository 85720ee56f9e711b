"""Rows that join and leave: each is generated as it would be alone, whatever stands beside it."""

from __future__ import annotations

import random

import pytest
import torch
from adapters_for_tests import make_adapter, with_dense_parts
from chat_models import tiny_chat_model
from tiny_models import tiny
from torch import nn
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.serving.running_batch import Row, RunningBatch, check_batching
from npti_export.steering.positions import Positions
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec

SLOTS = 9
PERSONALITIES = (None, "openness+", "neuroticism-0.5", "openness-2,neuroticism+", "openness+0.3")


def prompt(random_source: random.Random, length: int) -> list[int]:
    return [random_source.randrange(6, 60) for _ in range(length)]


def alone(model: LlamaForCausalLM, adapter: PersonalityAdapter, rows: list[Row], tokens: int) -> list[list[int]]:
    """The runtime's greedy answers to the rows' prompts, one after the other."""
    answers = []
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with load_personality(model, None, adapter, positions=rows[0].positions) as personality:
        for row in rows:
            personality.set(row.spec)
            done = model.generate(torch.tensor([row.ids[: row.prompt_length]]), **options)
            answers.append(done[0, row.prompt_length :].tolist())
    return answers


def generated(model: nn.Module, adapter: PersonalityAdapter, rows: list[Row], tokens: int) -> None:
    """Generates all rows together: they join at different steps, and leave when they have their tokens."""
    random_source = random.Random(1)
    waiting = list(rows)
    with load_personality(model, None, adapter, positions="all", slots=SLOTS) as personality:
        batch = RunningBatch(model, personality)
        while waiting or batch.rows:
            joining = [waiting.pop() for _ in range(min(random_source.randrange(3), len(waiting)))]
            if joining:
                batch.join(joining)
            if batch.rows:
                for row, token in zip(batch.rows, batch.step().argmax(-1).tolist(), strict=True):
                    row.add(token)
                batch.leave([row for row in batch.rows if len(row.ids) == row.prompt_length + tokens])


@pytest.mark.parametrize("positions", [Positions.GENERATED, Positions.LAST_PROMPT, Positions.ALL])
def test_a_row_is_generated_as_by_itself(positions: Positions) -> None:
    model = tiny_chat_model()
    adapter = with_dense_parts(make_adapter(model), 32, [1])
    source = random.Random(0)
    rows = []
    for number in range(8):
        ids = prompt(source, source.choice([1, 2, 5, 11, 20]))
        spec = PersonalitySpec.parse(PERSONALITIES[number % len(PERSONALITIES)])
        rows.append(Row(ids, len(ids), spec, positions))
    generated(model, adapter, rows, tokens=12)
    assert [row.ids[row.prompt_length :] for row in rows] == alone(model, adapter, rows, 12)
    same_prompt = [Row([7, 8, 9], 3, PersonalitySpec.parse(spec), positions) for spec in PERSONALITIES]
    # or equality would not show much
    assert len({tuple(answer) for answer in alone(model, adapter, same_prompt, 12)}) > 2


def test_thinking_is_left_alone_as_by_the_runtime() -> None:
    model = tiny_chat_model()
    adapter = make_adapter(model)
    thinking = Thinking(begin=3, end=4)
    openings = ([7, 8], [7, 3, 9], [3, 4, 7], [3, 8, 9, 10])
    rows = [Row([*ids], len(ids), PersonalitySpec.parse("openness+2"), Positions.ANSWER, thinking) for ids in openings]
    # A random model writes no marks by itself, so its likeliest token is replaced by them now and then.
    with load_personality(model, None, adapter, positions="all", slots=SLOTS) as personality:
        batch = RunningBatch(model, personality)
        batch.join(rows)
        written = {2: 3, 5: 4}
        logits = []
        for step in range(9):
            logits.append(batch.step())
            for row, token in zip(batch.rows, logits[-1].argmax(-1).tolist(), strict=True):
                row.add(written.get(step, token))
    for at, row in enumerate(rows):
        told = torch.tensor([row.ids])
        covered = thinking.covers(told)[0]
        steered = (~covered) & (torch.arange(len(row.ids)) >= row.prompt_length)
        with load_personality(model, None, adapter, positions="all", slots=SLOTS) as personality, torch.no_grad():
            cache = None
            for place, token in enumerate(row.ids[:-1]):
                with personality.using("openness+2" if steered[place] else None):
                    done = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = done.past_key_values
                if place >= row.prompt_length - 1:
                    mine = logits[place - row.prompt_length + 1][at]
                    assert torch.allclose(done.logits[0, -1], mine, atol=1e-4)


def test_prompts_that_cannot_be_read_leave_the_others_as_they_were() -> None:
    model = tiny_chat_model()
    adapter = make_adapter(model)
    row = Row([7, 8, 9], 3, PersonalitySpec.parse("openness+"))
    with load_personality(model, None, adapter, positions="all", slots=SLOTS) as personality:
        batch = RunningBatch(model, personality)
        batch.join([row])
        for step in range(6):
            if step == 3:
                with pytest.raises(IndexError):
                    batch.join([Row([7, 10**6, 8], 3)])
            row.add(int(batch.step().argmax()))
    assert [row.ids[3:]] == alone(model, adapter, [row], 6)


@pytest.mark.parametrize(
    "family", ["Llama", "Qwen3", "Gemma2", "Gemma3Text", "Phi3", "GPT2", "GPTNeoX", "OPT", "Bloom", "Falcon", "Mistral"]
)
def test_families_that_can_be_batched_pass_the_check(family: str) -> None:
    sizes = {"sliding_window": 3} if family in ("Gemma2", "Gemma3Text", "Mistral") else {}
    if family == "OPT":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    model = tiny(family, **sizes)
    adapter = make_adapter(model)
    with load_personality(model, None, adapter, positions="all") as personality:
        check_batching(model, personality)


def test_a_model_that_keeps_another_state_is_refused() -> None:
    model = tiny("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    with (
        load_personality(model, None, make_adapter(model), positions="all") as personality,
        pytest.raises(NptiError, match=r"Lfm2ForCausalLM.*--engine vllm"),
    ):
        check_batching(model, personality)


def test_a_model_whose_tokens_are_placed_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_chat_model()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda position_ids=None, **given: forward(**given))
    with (
        load_personality(model, None, make_adapter(model), positions="all") as personality,
        pytest.raises(NptiError, match="does not give the same logits in a batch as alone"),
    ):
        check_batching(model, personality)
