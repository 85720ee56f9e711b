"""The inventory: read with care, scored by log-probability whatever the letters, turned into percentiles."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from equation_4 import activations_of, steered_by_hooks
from torch import nn
from transformers import DynamicCache

from npti_export import load_personality
from npti_export.errors import NptiError
from npti_export.evaluation.inventory import (
    LETTERS,
    OPTIONS,
    TEMPLATES,
    expected_answers,
    measure_inventory,
    most_letters,
    question,
)
from npti_export.evaluation.inventory_file import Item, read_inventory
from npti_export.evaluation.inventory_norms import norms_for
from npti_export.identification.answers import Prompt, prompt_ids
from npti_export.traits import Pole

HEADER = "label_raw,text,label_ocean,key\n"
ROWS = "Order,Sort my screws,C,1\nOrder,Lose my keys,C,-1\nActivity Level,Run up stairs,E,1\n,Sit in the dark,E,-1\n"
ITEMS = (Item("Sort my screws", "conscientiousness", "order", False), Item("Lose my keys", "wit", "", True))


@pytest.fixture
def inventory(tmp_path: Path):
    path = tmp_path / "items.csv"
    path.write_text(HEADER + ROWS)
    return read_inventory(path)


class LetterModel(nn.Module):
    """Scores the letters as it is told: a liking for each letter, plus one for the option that stands at it."""

    def __init__(self, of_letters: list[float], of_options: list[float]) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer()
        self.of_letters, self.of_options = of_letters, of_options
        self.device = torch.device("cpu")
        self.config = tiny_chat_model(context=400).config

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        for at, ids in enumerate(input_ids):
            lines = self.tokenizer.decode(ids, skip_special_tokens=True).splitlines()
            for letter, liking in zip(LETTERS, self.of_letters, strict=True):
                option = next(line[3:] for line in lines if line.startswith(f"{letter}. "))
                token = self.tokenizer.convert_tokens_to_ids(letter)
                logits[at, :, token] = liking + self.of_options[OPTIONS.index(option)]
        return type("Output", (), {"logits": logits})()


def test_letters_that_a_model_likes_cancel_out() -> None:
    indifferent = LetterModel([5.0, 0.0, 1.0, 0.0, -2.0], [0.0] * 5)
    answers, on_options = expected_answers(indifferent, indifferent.tokenizer, ITEMS)
    assert answers == pytest.approx([3.0, 3.0], abs=1e-4)
    rest = len(indifferent.tokenizer) - 5
    likings = np.exp([5.0, 0.0, 1.0, 0.0, -2.0])
    assert on_options == pytest.approx(likings.sum() / (likings.sum() + rest), abs=1e-4)


def test_the_expected_option_is_that_of_the_probabilities_and_reverse_keys_are_flipped() -> None:
    likings = [0.5, -1.0, 0.0, 2.0, 1.0]
    decided = LetterModel([3.0, 0.0, -1.0, 0.0, 0.0], likings)
    answers, _ = expected_answers(decided, decided.tokenizer, ITEMS)
    weights = np.exp(likings) / np.exp(likings).sum()
    expected = float(weights @ [1, 2, 3, 4, 5])
    assert answers == pytest.approx([expected, 6 - expected], abs=1e-4)


def test_every_option_stands_at_every_letter_once() -> None:
    for template in TEMPLATES:
        seen = set()
        for rotation in range(5):
            lines = question("Sort my screws.", template, rotation).splitlines()
            seen |= {(line[0], line[3:]) for line in lines if line[1:3] == ". "}
            assert any("Sort my screws" in line for line in lines)
        assert seen == {(letter, option) for letter in LETTERS for option in OPTIONS}


@torch.no_grad()
def test_steered_answers_equal_a_loop_by_hand(inventory) -> None:
    model, tokenizer = tiny_chat_model(context=400), tiny_tokenizer()
    adapter, item = make_adapter(model), ITEMS[0]
    tokens = [tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
    sums, prompts = np.zeros(5), 0
    for template in TEMPLATES:
        for rotation in range(5):
            ids = prompt_ids(Prompt(question(item.text, template, rotation)), tokenizer)
            cache = DynamicCache()
            model(torch.tensor([ids[:-1]]), past_key_values=cache)
            with steered_by_hooks(activations_of(model), adapter, "openness", Pole.HIGH):
                last = model(torch.tensor([ids[-1:]]), past_key_values=cache).logits[0, -1].log_softmax(-1)
            for place, token in enumerate(tokens):
                sums[(place + rotation) % 5] += float(last[token])
            prompts += 1
    weights = np.exp(sums / prompts - (sums / prompts).max())
    with load_personality(model, "openness+", adapter) as personality:
        found, _ = expected_answers(model, tokenizer, [item], personality)
    assert found[0] == pytest.approx(float(weights @ [1, 2, 3, 4, 5]) / weights.sum(), abs=1e-3)


def test_a_report_holds_traits_and_facets_beside_the_unsteered_model(inventory) -> None:
    model, tokenizer, told = tiny_chat_model(context=400), tiny_tokenizer(), []
    result = measure_inventory(model, tokenizer, make_adapter(model), ["openness+"], inventory, progress=told.append)
    assert sum(told) == most_letters(len(inventory.items), 1) == 2 * 4 * 3 * 5 * 5
    plain, steered = result.reports
    assert (plain.personality, steered.personality) == ("unsteered", "openness+")
    answers, on_options = expected_answers(model, tokenizer, inventory.items)
    assert plain.traits["conscientiousness"].mean.mean == pytest.approx(answers[:2].mean())
    assert plain.facets["extraversion.activity_level"].mean.mean == pytest.approx(answers[2])
    assert set(plain.facets) == {"conscientiousness.order", "extraversion.activity_level"}
    assert plain.on_options == pytest.approx(on_options)
    assert steered.traits["extraversion"].mean.mean != plain.traits["extraversion"].mean.mean
    assert (result.norms, plain.traits["extraversion"].percentile) == (None, None)
    assert json.loads(json.dumps(result.section()))["reports"][1]["personality"] == "openness+"
    assert "Sort my screws" not in json.dumps(result.section())  # items are not passed on


def test_a_prompt_that_does_not_fit_is_refused(inventory) -> None:
    model = tiny_chat_model(context=96)
    with pytest.raises(NptiError, match="fills the context of 96 tokens"):
        measure_inventory(model, tiny_tokenizer(), make_adapter(model), [], inventory)


def test_an_inventory_as_it_is_read(inventory) -> None:
    assert inventory.items[1] == Item("Lose my keys", "conscientiousness", "order", True)
    assert inventory.items[2].facet == "activity_level"
    assert inventory.facets == {"conscientiousness": ("order",), "extraversion": ("activity_level",)}
    assert (inventory.name, len(inventory.sha256)) == ("items.csv", 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,key\nSing,1\n", "lacks the column label_raw"),
        (HEADER, "holds no item"),
        (HEADER + "Order,,C,1\n", "line 2: '' is no statement"),
        (HEADER + f"Order,{'x' * 400},C,1\n", "is no statement of 1 to 300"),
        (HEADER + "Order,Sing,C,2\n", "the key is '2'; 1 or -1"),
        (HEADER + "Order,Sing,C\n", "the key is ''"),
        (HEADER + "Order,Sing,!,1\n", "'!' is no trait"),
        (HEADER + "<b>,Sing,C,1\n", "'<b>' is no name of a facet"),
        (HEADER + "Order,Si\x1bng,C,1\n", "is no statement"),
        ("a" * (2**20 + 1), "larger than"),
    ],
)
def test_files_that_are_no_inventory_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(text)
    with pytest.raises(NptiError, match=said.replace("(", r"\(")):
        read_inventory(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match="No such file"):
        read_inventory(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NptiError, match="no text in UTF-8"):
        read_inventory(tmp_path / "bytes.csv")


@pytest.mark.skipif(importlib.util.find_spec("ipipneo") is None, reason="five-factor-e is not installed")
def test_percentiles_are_those_of_published_norms() -> None:
    from ipipneo.ipipneo import IpipNeo
    from ipipneo.norm import Norm as PublishedNorm

    from npti_export.evaluation.inventory_norms import AGE

    names = {
        "neuroticism": "anxiety anger depression self_consciousness immoderation vulnerability",
        "extraversion": "friendliness gregariousness assertiveness activity_level excitement_seeking cheerfulness",
        "openness": "imagination artistic_interests emotionality adventurousness intellect liberalism",
        "agreeableness": "trust morality altruism cooperation modesty sympathy",
        "conscientiousness": "self_efficacy orderliness dutifulness achievement_striving self_discipline cautiousness",
    }
    facets = {trait: tuple(of_trait.split()) for trait, of_trait in names.items()}
    norms = norms_for(facets, 120)
    assert len(norms) == 35
    assert norms_for(facets, 119) == norms_for({"openness": ("order",)}, 120) == {}
    # The package's own way from item scores to T-scores, of which the percentile is the normal distribution.
    scorer = IpipNeo(question=120)
    sums = scorer.score(answers=[1 + (7 * at + at // 30) % 5 for at in range(120)])
    published = PublishedNorm(sex="N", age=AGE, nquestion=120)
    domains = PublishedNorm.calc(domain=scorer.domain(score=sums), norm=published)
    of_facets = scorer.distrib(size=len(sums), b5=scorer.b5create(score=sums), norm=published)
    for trait, own in facets.items():
        letter = trait[0].upper()
        mean = scorer.domain(score=sums)[letter] / 24
        assert norms[trait].percentile(mean) == pytest.approx(_percent(domains[letter]), abs=1e-6)
        for place, facet in enumerate(own, 1):
            mean = scorer.b5create(score=sums)[letter][place] / 4
            expected = _percent(of_facets[letter][place])
            assert norms[f"{trait}.{facet}"].percentile(mean) == pytest.approx(expected, abs=1e-6)


def _percent(t_score: float) -> float:
    return 50 * (1 + math.erf((t_score - 50) / 10 / math.sqrt(2)))
