"""What a server makes of a request's personality: read, refused, where it begins, which cache blocks it marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from npti_export import PersonalityAdapter
from npti_export.adapter.records import Method, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.serving.personalities import MAX_SPEC_LENGTH, ServedPersonalities
from npti_export.serving.presets import read_presets
from npti_export.traits import PersonalitySpec

BLOCK = 4


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


@pytest.fixture
def served(adapter: PersonalityAdapter) -> ServedPersonalities:
    return ServedPersonalities(adapter)


def keys(served: ServedPersonalities, asked: object, prompt: int, blocks: int = 4) -> list[tuple[str, str] | None]:
    arguments = None if asked is None else {"personality": asked}
    return [served.block_key(arguments, prompt, BLOCK * n, BLOCK * (n + 1)) for n in range(blocks)]


@pytest.mark.parametrize(("positions", "first"), [("generated", 7), ("last_prompt+generated", 6), ("all", 0)])
def test_steering_begins_where_the_adapter_says(tiny_llama, tiny_adapter, positions: str, first: int) -> None:
    served = ServedPersonalities(tiny_adapter(tiny_llama, positions=positions))
    steering = served.steering({"personality": " Openness+0.5"}, prompt_tokens=7)
    assert steering is not None
    assert steering.first == first
    assert steering.spec == PersonalitySpec.parse("openness+0.5")


def test_a_request_that_names_none_gets_the_default_and_neutral_gets_none(adapter: PersonalityAdapter) -> None:
    plain = ServedPersonalities(adapter)
    assert plain.steering(None, 3) is None
    assert plain.steering({"other": 1}, 3) is None
    given = ServedPersonalities(adapter, "neuroticism-")
    for arguments in (None, {}, {"personality": None}):
        steering = given.steering(arguments, 3)
        assert steering is not None
        assert str(steering.spec) == "neuroticism-"
    assert given.steering({"personality": "neutral"}, 3) is None
    assert given.steering({"personality": "openness+0"}, 3) is None
    assert str(given.check({"openness": -2})) == "openness-2"


def test_a_default_that_cannot_be_served_is_refused(adapter: PersonalityAdapter) -> None:
    with pytest.raises(NptiError, match="no trait 'anger'"):
        ServedPersonalities(adapter, "anger+")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("anger+", "there is no trait 'anger' (there is openness, neuroticism)"),
        ("openness", "a term is a trait, + or -, and an optional strength"),
        ("openness+,openness-", "openness stands there twice"),
        ("openness+" + "9" * 400, "the strength is too large"),
        ("openness+1e40", "a term is a trait"),
        ("openness+" + "9" * 60, "do not fit the model's activations"),
        ("openness+" + "0" * MAX_SPEC_LENGTH, f"at most {MAX_SPEC_LENGTH} are read"),
        (5, "A personality is text, a mapping or None, not int."),
        (["openness+"], "not list"),
        ("", "term ''"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(served, asked: object, said: str) -> None:
    with pytest.raises(NptiError) as error:
        served.check(asked)
    assert said in str(error.value)
    assert len(str(error.value)) < 3 * MAX_SPEC_LENGTH


def test_what_the_dtype_cannot_hold_is_refused(adapter: PersonalityAdapter) -> None:
    half = ServedPersonalities(adapter, largest=65504.0)
    half.check("openness+1000")
    with pytest.raises(NptiError, match="at most 65504"):
        half.check("openness+1000000")


def test_poles_that_a_server_cannot_play_are_refused(tiny_llama, tiny_adapter) -> None:
    with pytest.raises(NptiError, match="dropout"):
        ServedPersonalities(tiny_adapter(tiny_llama, dropout=0.1)).check("openness+")
    with pytest.raises(NptiError, match="positions 'answer'"):
        ServedPersonalities(tiny_adapter(tiny_llama, positions="answer")).check("openness+")
    everywhere = tiny_adapter(tiny_llama, positions="all").traits["openness"]
    mixed = ServedPersonalities(tiny_adapter(tiny_llama).with_trait(everywhere))
    mixed.check("openness+")
    with pytest.raises(NptiError, match="different positions"):
        mixed.check("openness+,neuroticism+")


def dense(trait: TraitRecord, size: float) -> TraitRecord:
    """The trait with nothing but a dense part: no neuron is moved or capped."""
    added = ResidualShift(np.array([1], np.int16), np.full((1, 32), size, np.float32))
    poles = {}
    for pole, record in trait.poles.items():
        still = replace(record.neurons, shift=np.zeros_like(record.neurons.shift))
        poles[pole] = replace(record, neurons=still, caps="none", method=Method("residual"), residual=added)
    return replace(trait, poles=poles)


def test_a_dense_part_alone_is_something_to_serve(adapter: PersonalityAdapter) -> None:
    served = ServedPersonalities(adapter.with_trait(dense(adapter.traits["openness"], 1.0)))
    assert served.poles == ["openness+", "openness-", "neuroticism+", "neuroticism-"]
    assert str(served.check("openness+0.5,neuroticism-")) == "openness+0.5,neuroticism-"
    nothing = ServedPersonalities(adapter.with_trait(dense(adapter.traits["openness"], 0.0)))
    with pytest.raises(NptiError, match="would do nothing"):
        nothing.check("openness+")


def test_a_dense_part_that_the_dtype_may_not_hold_is_refused(adapter: PersonalityAdapter) -> None:
    served = ServedPersonalities(adapter.with_trait(dense(adapter.traits["openness"], 1000.0)), largest=65504.0)
    served.check("openness+")
    with pytest.raises(NptiError, match=r"'openness\+2': its shifts do not fit"):
        served.check("openness+2")


def test_blocks_of_the_prompt_are_shared_and_steered_ones_are_not(served: ServedPersonalities) -> None:
    plain, high, low = (keys(served, asked, prompt=10) for asked in (None, "openness+", "openness-"))
    assert plain == [None] * 4
    assert high[:2] == low[:2] == [None, None]  # tokens 0 to 7 are prompt
    assert None not in high[2:]
    assert not set(high[2:]) & set(low[2:])
    assert keys(served, "Openness + 1", prompt=10) == high  # another spelling of the same


def test_a_prompt_that_ends_with_a_block_shares_all_of_it(served: ServedPersonalities) -> None:
    assert [key is None for key in keys(served, "openness+", prompt=8)] == [True, True, False, False]


def test_tokens_that_are_prompt_in_one_request_and_generated_in_another_are_told_apart(
    served: ServedPersonalities,
) -> None:
    """The same twelve tokens, generated from the third, the fourth or not at all."""
    third = [keys(served, "openness+", prompt)[2] for prompt in (8, 9, 10, 11, 12)]
    assert third[-1] is None
    assert len(set(third)) == 5


def test_all_positions_mark_the_first_block(tiny_llama, tiny_adapter) -> None:
    served = ServedPersonalities(tiny_adapter(tiny_llama, positions="all"))
    assert keys(served, "openness+", prompt=10) == keys(served, "openness+", prompt=3)  # sharing among themselves
    assert None not in keys(served, "openness+", prompt=10)


def test_the_last_prompt_token_marks_its_block(tiny_llama, tiny_adapter) -> None:
    served = ServedPersonalities(tiny_adapter(tiny_llama, positions="last_prompt+generated"))
    assert [key is None for key in keys(served, "openness+", prompt=8)] == [True, False, False, False]


def test_keys_name_the_adapter(tiny_llama, tiny_adapter) -> None:
    one, other = (ServedPersonalities(tiny_adapter(tiny_llama, seed=seed)) for seed in (0, 1))
    assert keys(one, "openness+", prompt=4)[1] != keys(other, "openness+", prompt=4)[1]


def test_presets_are_asked_for_by_name(adapter: PersonalityAdapter) -> None:
    served = ServedPersonalities(adapter, "calm", presets={"calm": "neuroticism-", "curious-mind": "openness+1.2"})
    assert str(served.default) == "neuroticism-"
    assert served.steering({"personality": "curious-mind"}, 3) == served.steering({"personality": "openness+1.2"}, 3)
    with pytest.raises(NptiError, match="no trait 'anger'"):
        ServedPersonalities(adapter, presets={"cross": "anger+"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds list"),
        ('{"openness+": "openness+"}', "cannot name a personality"),
        ('{"neutral": "openness+"}', "cannot name a personality"),
        ('{"openness-1": "openness+"}', "'openness-1' cannot name a personality, because it reads as one"),
        ('{"openness-1.5": "openness+"}', "because it reads as one"),
        ('{"calm": 1}', "the personality of 'calm' is int"),
    ],
)
def test_a_file_of_presets_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "presets.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NptiError, match=said):
        read_presets(str(path))


def test_a_file_of_presets_is_read(tmp_path: Path) -> None:
    path = tmp_path / "presets.json"
    path.write_text('{"warm-agent": "agreeableness+"}', encoding="utf-8")
    assert read_presets(str(path)) == {"warm-agent": "agreeableness+"}
    with pytest.raises(NptiError, match=r"none\.json"):
        read_presets(str(tmp_path / "none.json"))


def test_poles_are_listed(served: ServedPersonalities) -> None:
    assert served.poles == ["openness+", "openness-", "neuroticism+", "neuroticism-"]
