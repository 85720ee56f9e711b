"""The model card: what the Hub reads, what people read, and that nobody's own words are written over."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from made_by_hand import base_model, trait_record

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import card_text, is_generated
from npti_export.errors import NptiError
from npti_export.traits import Pole

SCORES = {
    "effect": [0.412, 0.3, 0.5],
    "placebo": [-0.01, -0.1, 0.1],
    "prompt": [0.5, 0.4, 0.6],
    "fluency": [1.204, 1.1, 1.3],
    "questions": 92,
    "judge": "local",
}


def table(card, first_column):
    """Cells of the one table whose head starts so, without its head."""
    (found,) = re.findall(rf"^\| {first_column} \|.*\n\|[-|]+\|\n((?:\|.*\n)*)", card, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def with_scores(adapter, scores):
    openness = adapter.traits["openness"]
    high = replace(openness.poles[Pole.HIGH], scores=scores)
    return adapter.with_trait(replace(openness, poles={**openness.poles, Pole.HIGH: high}))


def test_what_the_hub_reads(adapter):
    data = ModelCard(card_text(adapter.base_model, adapter.traits)).data.to_dict()
    assert data == {
        "base_model": "someone/small-chat",
        "base_model_relation": "adapter",
        "library_name": "npti-export",
        "pipeline_tag": "text-generation",
        "tags": ["personality", "steering", "npti", "openness", "neuroticism", "wit"],
    }


def test_a_base_model_that_is_not_on_the_hub_is_not_linked_there(adapter):
    card = card_text(base_model("my model: v2"), adapter.traits)
    data = ModelCard(card).data.to_dict()
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert "huggingface.co" not in card
    assert "`my model: v2`" in card


def test_what_was_not_measured_is_said_to_be(adapter):
    rows = table(card_text(adapter.base_model, adapter.traits), "personality")
    names = [f"`{name}{sign}`" for name in ("openness", "neuroticism", "wit") for sign in "+-"]
    assert [row[0] for row in rows] == names
    assert rows[0] == ["`openness+`", "4", "0.7"] + ["not measured"] * 5
    assert rows[1][2] == "0.7 (not calibrated)"


def test_what_was_measured(adapter):
    scored = with_scores(adapter, {"local": SCORES, "openai:gpt": SCORES | {"prompt": None, "questions": 10}})
    rows = table(card_text(scored.base_model, scored.traits), "personality")
    assert rows[0] == [
        "`openness+`",
        "4",
        "0.7",
        "local, 92 questions",
        "+0.41 [+0.30, +0.50]",
        "-0.01 [-0.10, +0.10]",
        "+0.50 [+0.40, +0.60]",
        "1.20 [1.10, 1.30]",
    ]
    assert rows[1][3:7] == ["openai:gpt, 10 questions", "+0.41 [+0.30, +0.50]", "-0.01 [-0.10, +0.10]", "not measured"]
    assert rows[2][0] == "`openness-`"


@pytest.mark.parametrize(
    "scores", [{"local": {}}, {"local": {"effect": "large"}}, {"local": {"effect": [1, 2]}}, {"note": 3}]
)
def test_scores_of_another_form_leave_no_hole(adapter, scores):
    scored = with_scores(adapter, scores)
    (row, *_) = table(card_text(scored.base_model, scored.traits), "personality")
    assert row[4:] == ["not measured"] * 4


def test_where_it_came_from(adapter):
    unknown = replace(adapter.traits["wit"].identification, split_half_reliability=None)
    changed = adapter.with_trait(replace(adapter.traits["wit"], identification=unknown))
    rows = table(card_text(changed.base_model, changed.traits), "trait")
    assert rows[0] == ["openness", "identified", "60", "1200 / 1100", "0.987"]
    assert rows[2] == ["wit", "identified", "60", "1200 / 1100", "not measured"]


def test_the_card_has_no_hole(adapter):
    card = card_text(adapter.base_model, adapter.traits)
    assert not re.search(r"\| *\||\{\{|\{%|None|Undefined|\(\)|\[\]|\n\n\n", card)
    assert all(len(set(map(len, table(card, first)))) == 1 for first in ("personality", "trait"))
    assert "/tmp" not in card
    assert "Capability (benchmarks of knowledge and reasoning): not measured." in card


def test_the_example_in_the_card_is_python_and_names_the_adapter(adapter):
    card = card_text(adapter.base_model, adapter.traits, "someone/personalities")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert 'load_personality(model, "openness+", adapter="someone/personalities")' in code


def test_it_is_known_whether_a_card_was_edited(adapter):
    card = card_text(adapter.base_model, adapter.traits).encode()
    assert is_generated(card)
    last = card.splitlines(keepends=True)[-1]
    for other in (
        card.replace(b"not a person", b"a person"),
        card + b"\n## Mine\n",
        card.removesuffix(last),
        card.replace(b"\n", b"\r\n"),
        b"# " + last,
        b"",
        b"\xff",
    ):
        assert not is_generated(other)


def test_a_card_of_ours_is_written_anew(adapter, folder):
    before = (folder / "README.md").read_bytes()
    adapter.with_trait(trait_record("extraversion")).save_pretrained(folder)
    after = (folder / "README.md").read_bytes()
    assert b"`extraversion+`" not in before
    assert b"`extraversion+`" in after


def test_a_card_edited_by_hand_is_kept_here_and_goes_along(adapter, folder, tmp_path):
    card = folder / "README.md"
    card.write_bytes(card.read_bytes() + "\n## Mine: schön\n".encode())
    mine = card.read_bytes()
    adapter.with_trait(trait_record("extraversion")).save_pretrained(folder)
    assert card.read_bytes() == mine
    read = PersonalityAdapter.from_pretrained(folder)
    assert "extraversion" in read.traits
    read.with_trait(trait_record("wit", seed=4)).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == mine
    assert PersonalityAdapter.from_pretrained(tmp_path / "copy").card == mine


def test_somebody_elses_readme_is_not_written_over(adapter, tmp_path):
    (tmp_path / "README.md").write_bytes(b"# My project \xff\n")
    adapter.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"# My project \xff\n"
    assert PersonalityAdapter.from_pretrained(tmp_path) == adapter


def test_a_deleted_card_comes_back_and_a_damaged_adapter_does_not_cost_the_card(adapter, folder):
    (folder / "README.md").unlink()
    adapter.save_pretrained(folder)
    assert is_generated((folder / "README.md").read_bytes())
    (folder / "README.md").write_text("mine")
    (folder / "config.json").write_text("damaged")
    with pytest.raises(NptiError):
        PersonalityAdapter.from_pretrained(folder)
    adapter.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert PersonalityAdapter.from_pretrained(folder) == adapter
