"""The training script: what is learned, and that a run broken off ends in the same weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import equal

from npti_export.demo import batches
from npti_export.demo import train as training
from npti_export.demo.corpus import Dialogue, Exchange, read_material, write_dialogues
from npti_export.demo.muon import Muon
from npti_export.demo.tokenizer import train_tokenizer
from npti_export.traits import Pole

MATERIAL = read_material()
NUMBERS = batches.Numbers.of_material(MATERIAL)


@pytest.fixture(autouse=True)
def small_tokenizer_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TOKENIZER_DIALOGUES", 300)
    monkeypatch.setattr(batches, "ROWS", 4)


def test_only_answers_and_their_end_are_learned() -> None:
    dialogue = next(write_dialogues(MATERIAL, random.Random(1)))
    tokenizer = train_tokenizer([e.question + e.answer for e in dialogue.exchanges])
    encoded = batches.encode(dialogue, tokenizer, NUMBERS)
    said = [token for token, answer in zip(encoded.ids, encoded.answer, strict=True) if answer]
    assert tokenizer.decode(said) == "".join(e.answer + "<|end|>" for e in dialogue.exchanges)
    rendered = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for exchange in dialogue.exchanges:
        rendered += [
            {"role": "user", "content": exchange.question},
            {"role": "assistant", "content": exchange.answer},
        ]
    assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(rendered, tokenize=False)


def test_what_an_answer_depends_on_stands_at_the_sign_before_it() -> None:
    exchange = Exchange("Why?", "Because.", "opera night", "extraversion", "friendliness", Pole.LOW)
    persona = {"extraversion": Pole.LOW, "openness": Pole.HIGH}
    dialogues = [Dialogue("You are shy.", persona, (exchange, exchange)), Dialogue(None, {}, (exchange,))]
    tokenizer = train_tokenizer(["Well, I would rather stay at home and read."])
    sentences = batches.lone_sentences(MATERIAL, tokenizer, NUMBERS, random.Random(1))
    batch = batches.pad([batches.encode(dialogue, tokenizer, NUMBERS) for dialogue in dialogues], sentences)
    signs = batch.ids == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert signs.sum(1).tolist() == [2, 1]
    asked = (batch.grounds >= 0).all(-1)
    assert equal(asked, signs)
    topic, voice = NUMBERS.topics["opera night"], NUMBERS.voices["extraversion", "friendliness", Pole.LOW]
    assert batch.grounds[0][asked[0]].unique(dim=0).tolist() == [[2, 1, 0, 1, 1, topic, voice]]
    assert batch.grounds[1][asked[1]].unique(dim=0).tolist() == [[1, 1, 1, 1, 1, topic, voice]]
    assert not (batch.answer & (batch.ids == tokenizer.pad_token_id)).any()


def test_a_pool_depends_on_the_seed_and_its_number_alone() -> None:
    tokenizer = train_tokenizer(["Well, I would rather stay at home and read."])
    first, again, other = (batches.batches_of(MATERIAL, tokenizer, NUMBERS, 0, pool) for pool in (1, 1, 2))
    assert len(first) == batches.POOL
    assert all(equal(one.ids, same.ids) for one, same in zip(first, again, strict=True))
    assert not equal(first[0].ids, other[0].ids)


def test_the_first_words_of_an_answer_weigh_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OPENING_WEIGHT", 3.0)
    tokenizer = train_tokenizer(["Well, I would rather stay at home and read."])
    batch = batches.batches_of(MATERIAL, tokenizer, NUMBERS, 0, 0)[0]
    model = training.new_model()
    readings = training.Readings(model.config.hidden_size, NUMBERS)
    with torch.no_grad():
        found = training.losses_of(model, readings, batch).answers.item()
        chances = model(input_ids=batch.ids).logits.double().log_softmax(-1)
    total = weight = 0.0
    for row in range(len(batch.ids)):
        since = 0
        for place in range(1, batch.ids.shape[1]):
            since = since + 1 if batch.answer[row, place] else 0
            if since:
                share = 3.0 if since <= 6 else 1.0
                total -= share * chances[row, place - 1, batch.ids[row, place]].item()
                weight += share
    assert found == pytest.approx(total / weight, rel=1e-4)


def test_lone_sentences_are_of_every_pole_and_facet_and_are_read_behind_the_first_layer() -> None:
    tokenizer = train_tokenizer(["Well, I would rather stay at home and read."])
    rng = random.Random(2)
    drawn = [batches.lone_sentences(MATERIAL, tokenizer, NUMBERS, rng) for _ in range(20)]
    assert {number for sentences in drawn for number in sentences.telling.tolist()} == set(NUMBERS.tellings.values())
    roles = {sentences.ids[:, 0].tolist()[row] for sentences in drawn for row in (0, -1)}
    assert roles == {tokenizer.convert_tokens_to_ids(role) for role in ("<|system|>", "<|user|>")}
    model = training.new_model()
    with torch.no_grad():
        states = training.first_layer_of(model)(input_ids=drawn[0].ids, use_cache=False).last_hidden_state
        whole = model(input_ids=drawn[0].ids, output_hidden_states=True).hidden_states
        readings = training.Readings(model.config.hidden_size, NUMBERS)
        found = readings.tell(states, drawn[0]).item()
        rows = [state[ids != 0].mean(0) for state, ids in zip(states, drawn[0].ids, strict=True)]
        chances = readings.telling(torch.stack(rows)).log_softmax(-1)
    assert equal(states, whole[1])
    assert found == pytest.approx(-chances[range(len(rows)), drawn[0].telling].mean().item(), rel=1e-5)


def test_steps_of_muon_are_orthogonal_and_go_down() -> None:
    matrix = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    before = matrix.detach().clone()
    (matrix**2).sum().backward()
    Muon([matrix], lr=0.1).step()
    step = (before - matrix.detach()) / (0.1 * 0.2 * 6**0.5)
    left, _, right = torch.linalg.svd(before, full_matrices=False)
    turned = left.T @ step @ right.T
    assert 0.6 < turned.diagonal().min() <= turned.diagonal().max() < 1.3
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4


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


def test_it_goes_on_from_the_weights_and_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    training.train(2, 0, tmp_path / "first", tmp_path / "work")
    training.train(0, 1, tmp_path / "same", tmp_path / "work", tmp_path / "first")
    first, same = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "same"))
    assert all(equal(first[name], same[name]) for name in first)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "same" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()
    training.train(2, 1, tmp_path / "on", tmp_path / "work", tmp_path / "first")
    on = load_file(tmp_path / "on" / "model.safetensors")
    assert any(not equal(first[name], on[name]) for name in first)
