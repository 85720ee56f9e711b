"""The training script: what is learned, and that a run broken off ends in the same weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from npti_export.demo import train as training
from npti_export.demo.corpus import read_material, write_dialogue
from npti_export.demo.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def small_tokenizer_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TOKENIZER_DIALOGUES", 300)
    monkeypatch.setattr(training, "TOKENS_PER_STEP", 512)


def test_answers_and_their_end_weigh_most() -> None:
    rng = random.Random(1)
    dialogue = write_dialogue(read_material(), rng)
    tokenizer = train_tokenizer([e.question + e.answer for e in dialogue.exchanges])
    material = read_material()
    encoded = training.encode(dialogue, tokenizer, training.number_voices(material))
    ids = encoded.ids
    said = [token for token, weight in zip(ids, encoded.weights, strict=True) if weight == 1.0]
    asked = [token for token, voice in zip(ids, encoded.voices, strict=True) if voice != training.NO_VOICE]
    assert tokenizer.decode(asked) == "<|assistant|>" * len(dialogue.exchanges)
    assert tokenizer.decode(said) == "".join(e.answer + "<|end|>" for e in dialogue.exchanges)
    rendered = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for exchange in dialogue.exchanges:
        rendered += [
            {"role": "user", "content": exchange.question},
            {"role": "assistant", "content": exchange.answer},
        ]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(rendered, tokenize=False)


def test_padding_weighs_nothing_and_prompts_little() -> None:
    material = read_material()
    tokenizer = train_tokenizer(["Well, I would rather stay at home and read."])
    ids, weights, _ = training.batch_of(material, tokenizer, "0:1", 0.5)
    assert set(weights.unique().tolist()) <= {0.0, training.PROMPT_WEIGHT, 1.0}
    assert ((weights == 0) <= (ids == tokenizer.pad_token_id)).all()
    again, _, _ = training.batch_of(material, tokenizer, "0:1", 0.5)
    assert equal(ids, again)


def test_broken_off_and_resumed_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    training.train(4, 0, tmp_path / "whole", tmp_path / "work")

    kept = training._keep

    def keep_and_stop(*arguments: object) -> None:
        kept(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(4, 0, tmp_path / "again", tmp_path / "work")
    monkeypatch.setattr(training, "_keep", kept)
    training.train(4, 0, tmp_path / "again", tmp_path / "work")
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert whole.keys() == again.keys()
    assert all(equal(whole[name], again[name]) for name in whole)
