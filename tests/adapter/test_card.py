"""The model card: what the Hub reads, what people read, and that nobody's own words are written over."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from made_by_hand import base_model, trait_record

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import card_text, is_generated
from npti_export.adapter.records import Method
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
    head = re.escape(f"| {first_column} |")
    (found,) = re.findall(rf"^{head}.*\n\|[-|]+\|\n((?:\|.*\n)*)", card, re.MULTILINE)
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


def test_the_index_of_results_that_the_hub_shows(adapter):
    """Read back by the Hub's own classes: one data set a trait and judge, one metric a figure."""
    unmeasured = ModelCard(card_text(adapter.base_model, adapter.traits)).data
    assert unmeasured.eval_results is None
    assert "model-index" not in unmeasured.to_dict()
    scored = with_scores(adapter, {"local": SCORES, "openai:gpt": SCORES | {"prompt": None}, "note": 3})
    data = ModelCard(card_text(scored.base_model, scored.traits)).data
    assert data.model_name == "Personalities for someone/small-chat"
    found = [(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results]
    local, gpt = "Questions on openness, judge: local", "Questions on openness, judge: openai:gpt"
    assert found == [
        (local, "effect", 0.412),
        (local, "placebo", -0.01),
        (local, "prompt", 0.5),
        (local, "fluency", 1.204),
        (gpt, "effect", 0.412),
        (gpt, "placebo", -0.01),
        (gpt, "fluency", 1.204),
    ]
    assert data.eval_results[0].metric_name == "openness+: effect [0.3, 0.5]"
    (index,) = data.to_dict()["model-index"]
    assert [len(result["metrics"]) for result in index["results"]] == [4, 3]


def test_bleed_and_capability_are_shown_where_they_were_measured(adapter):
    plain = card_text(adapter.base_model, adapter.traits)
    for what in (
        "Bleed (how far the other traits' scores moved with it): not measured.",
        "Capability (benchmarks of knowledge and reasoning): not measured.",
    ):
        assert what in plain
    more = SCORES | {
        "bleed": {"wit": [0.05, -0.01, 0.1], "neuroticism": [-0.204, -0.3, -0.1]},
        "capability": {"gsm8k": [-7.04, -9, -5], "mmlu": "fell"},
    }
    scored = with_scores(adapter, {"local": more})
    card = card_text(scored.base_model, scored.traits)
    assert table(card, "personality | judge") == [
        ["`openness+`", "local", "neuroticism", "-0.20 [-0.30, -0.10]"],
        ["`openness+`", "local", "wit", "+0.05 [-0.01, +0.10]"],
    ]
    assert table(card, "personality | measured by") == [
        ["`openness+`", "local", "gsm8k", "-7.0 [-9.0, -5.0]"],
        ["`openness+`", "local", "mmlu", "not measured"],
    ]
    assert "not measured." not in card


def test_benchmarks_alone_make_no_row_of_effects(adapter):
    scored = with_scores(adapter, {"local": SCORES, "lm-eval": {"capability": {"gsm8k": [-7.04, -9, -5]}}})
    card = card_text(scored.base_model, scored.traits)
    judges = [row[3] for row in table(card, "personality | neurons") if row[0] == "`openness+`"]
    assert judges == ["local, 92 questions"]
    assert table(card, "personality | measured by") == [["`openness+`", "lm-eval", "gsm8k", "-7.0 [-9.0, -5.0]"]]


def test_method_citation_and_intended_use(adapter):
    card = card_text(adapter.base_model, adapter.traits)
    assert card.count("- `npti`: neurons whose δ is 0.1 or more") == 1
    assert "percentile 95, f(δ) a sigmoid of steepness 10 around 0.15." in card
    for words in ("@inproceedings{", "arxiv.org/abs/2410.12327", "not a person", "do not use this to deceive"):
        assert words in card


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            Method("mean-shift", min_effect_size=0.8),
            "`mean-shift`: neurons of effect size 0.8 or more, moved by γ times",
        ),
        (Method("residual"), "`residual`: γ times the difference of the means of the residual stream"),
        (Method("hybrid", min_effect_size=0.5), "`hybrid`: neurons of effect size 0.5 or more, moved by γ times the"),
        (Method("fitted"), "`fitted`: γ times vectors added to the residual stream after some layers, fitted so that"),
    ],
)
def test_other_methods_are_told_as_they_are(adapter, method, words):
    openness = adapter.traits["openness"]
    low = replace(openness.poles[Pole.LOW], method=method)
    changed = adapter.with_trait(replace(openness, poles={**openness.poles, Pole.LOW: low}))
    card = card_text(changed.base_model, changed.traits)
    assert f"- {words}" in card
    assert "- `npti`: " in card


@pytest.mark.parametrize(
    "text", ["a | b\n\n# c", "<script>alert(1)</script>", "`code` [link](x)", "---\nlicense: mit\n---", "*b*"]
)
def test_what_somebody_wrote_into_a_config_is_no_markup_in_the_card(adapter, text):
    def written(name):
        scored = with_scores(adapter, {name: SCORES | {"bleed": {name: [0.1, 0, 0.2]}}})
        return ModelCard(card_text(base_model(f"m {name}"), scored.traits))

    def marks(card, markup):
        prose = re.sub(r"```python\n.*?```", "", card.text, flags=re.DOTALL)
        return len(re.findall(markup, prose, re.MULTILINE))

    plain, card = written("x"), written(text)
    for markup in (r"^#+ ", r"(?<!\\)\|", r"(?<!\\)[<>]", r"(?<!\\)\]\("):
        assert marks(card, markup) == marks(plain, markup), markup
    assert card.data.to_dict().keys() == plain.data.to_dict().keys()
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    compile(code, "card", "exec")


def test_what_was_not_measured_is_said_to_be(adapter):
    rows = table(card_text(adapter.base_model, adapter.traits), "personality | neurons")
    names = [f"`{name}{sign}`" for name in ("openness", "neuroticism", "wit") for sign in "+-"]
    assert [row[0] for row in rows] == names
    assert rows[0] == ["`openness+`", "4", "0.7"] + ["not measured"] * 5
    assert rows[1][2] == "0.7 (not calibrated)"


def test_what_was_measured(adapter):
    scored = with_scores(adapter, {"local": SCORES, "openai:gpt": SCORES | {"prompt": None, "questions": 10}})
    rows = table(card_text(scored.base_model, scored.traits), "personality | neurons")
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
    "scores",
    [
        {"local": {}},
        {"local": {"effect": "large"}},
        {"local": {"effect": [1, 2]}},
        {"local": {"effect": [10**400, 0, 1]}},
        {"note": 3},
    ],
)
def test_scores_of_another_form_leave_no_hole(adapter, scores):
    scored = with_scores(adapter, scores)
    (row, *_) = table(card_text(scored.base_model, scored.traits), "personality | neurons")
    assert row[4:] == ["not measured"] * 4


def test_where_it_came_from(adapter):
    unknown = replace(adapter.traits["wit"].identification, split_half_reliability=None)
    changed = adapter.with_trait(replace(adapter.traits["wit"], identification=unknown))
    rows = table(card_text(changed.base_model, changed.traits), "trait")
    assert rows[0] == ["openness", "identified", "60", "1,200 / 1,100", "0.987"]
    assert rows[2] == ["wit", "identified", "60", "1,200 / 1,100", "not measured"]


def test_an_import_that_knows_no_answers_says_so(adapter):
    wit = adapter.traits["wit"]
    imported = replace(wit.identification, source="imported", transcripts=0, tokens={"high": 0, "low": 0})
    changed = adapter.with_trait(replace(wit, identification=imported))
    row = table(card_text(changed.base_model, changed.traits), "trait")[2]
    assert row == ["wit", "imported", "not known", "not known", "0.987"]


def test_the_card_has_no_hole(adapter):
    card = card_text(adapter.base_model, adapter.traits)
    assert not re.search(r"\| *\||\{\{|\{%|None|Undefined|\(\)|\[\]|\n\n\n", card)
    assert all(len(set(map(len, table(card, first)))) == 1 for first in ("personality | neurons", "trait"))
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
