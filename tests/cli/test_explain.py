"""``npti-export explain`` on an adapter that was identified a moment before: table, JSON, neurons asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from identify_process import TOKENIZER, chat_model, personas, questions
from markupsafe import escape

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import main
from npti_export.evaluation.report.explanation_page import write_explanation_page
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.explanation import ExplainedPole, NeuronExplanation, Passage, Words
from npti_export.identification.files import TraitFiles
from npti_export.identification.selection import select_into
from npti_export.identification.selector import Selector
from npti_export.identification.stages import run_elicit_and_measure
from npti_export.pipeline import plan_traits, work_with
from npti_export.traits import Pole


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An adapter with transcripts and statistics beside it, and its model."""
    folder = tmp_path_factory.mktemp("identified")
    model = chat_model()
    model.save_pretrained(folder / "tiny-chat")
    TOKENIZER.save_pretrained(folder / "tiny-chat")
    material = plan_traits(["openness"], questions, personas)["openness"]
    run_elicit_and_measure(work_with(model, TOKENIZER), TraitFiles(folder / "adapter", "openness"), material)
    select_into(folder / "adapter", ["openness"], Selector(min_difference=0.02))
    return [str(folder / "adapter"), "--model", str(folder / "tiny-chat")]


def explain(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["explain", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_json_tells_the_largest_deltas_with_words_interval_and_passages(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = explain([*given, "--top", "2", "--json", "-q"], capsys)
    assert code == 0, err
    told = json.loads(out)
    assert told["adapter"] == given[0]
    assert list(told["personalities"]) == ["openness+", "openness-"]
    adapter = PersonalityAdapter.from_pretrained(given[0])
    transcripts = read_transcripts(Path(given[0]) / "transcripts" / "openness.jsonl")
    for pole, found in zip(Pole, told["personalities"].values(), strict=True):
        chosen = adapter.traits["openness"].poles[pole].neurons
        assert found["chosen"] == len(chosen)
        assert found["vectors"] == []
        largest = np.argsort(-chosen.delta, kind="stable")[:2]
        places = [(int(chosen.layer[at]), int(chosen.index[at])) for at in largest]
        assert [(neuron["layer"], neuron["index"]) for neuron in found["neurons"]] == places
        for neuron, at in zip(found["neurons"], largest, strict=True):
            assert neuron["delta"] == pytest.approx(float(chosen.delta[at]), abs=1e-6)
            assert 0 <= neuron["margin"] < 1
            assert len(set(neuron["words"]["promotes"])) == len(set(neuron["words"]["suppresses"])) == 8
            assert len(neuron["passages"]) == 3
            for passage in neuron["passages"]:
                said = [t for t in transcripts if t.pole == passage["pole"]]
                text = passage["before"] + passage["token"] + passage["after"]
                assert any(text in TOKENIZER.decode(transcript.token_ids) for transcript in said)


def test_the_table_shows_the_neurons_that_were_asked_for(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = explain([*given, "--neuron", "1:9", "--neuron", "0:3"], capsys)
    assert code == 0, err
    assert "openness: explain: done" in err
    for heading in ("openness+: ", "openness-: "):
        table = out.partition(heading)[2].partition("openness-: ")[0]
        assert table.index(" 1:9 ") < table.index(" 0:3 ")
        assert "promotes" in table
        assert table.count(" ± ") == 2
        assert table.count("… ") >= 6


def test_the_page_shows_what_the_json_tells_and_needs_nothing_else(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "neurons.html"
    code, out, err = explain([*given, "--top", "2", "--json", "--html", str(page)], capsys)
    assert code == 0, err
    assert str(page) in err
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "://" not in text
    for personality, found in json.loads(out)["personalities"].items():
        part = text.partition(f'<h2 id="{personality}">')[2].partition("<h2")[0]
        for neuron in found["neurons"]:
            assert f"<td>{neuron['layer']}:{neuron['index']}</td>" in part
            assert f"{neuron['delta']:+.3f} ± {neuron['margin']:.3f}" in part
            for passage in neuron["passages"]:
                marked = f"{escape(passage['before'])}<mark>{escape(passage['token'])}</mark>"
                assert str(marked) in part


def test_a_page_of_words_that_would_be_code_shows_them_as_text(tmp_path: Path) -> None:
    words = Words(("<script>", " tea"), ("&", " "))
    passage = Passage(Pole.HIGH, "<b>", "<i>", "</i>", 1.5)
    neuron = NeuronExplanation(1, 2, None, None, words, None, (passage,))
    write_explanation_page(tmp_path / "p.html", "a<b", "m", {"openness+": ExplainedPole(1, (neuron,), ())})
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script" not in text.partition("</head>")[2]
    assert "&lt;script&gt; · tea" in text
    assert "&lt;b&gt;<mark>&lt;i&gt;</mark>" in text
    assert "unknown" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--neuron", "9:1"], 1, "There is no dense neuron 9:1; LlamaForCausalLM has the layers 0 to 2 of 48 neurons."),
        (["--neuron", "0:48"], 1, "There is no dense neuron 0:48"),
        (["--trait", "wit"], 1, "has no trait 'wit'; it has openness."),
        (["--neuron", "9"], 2, "'9' is no neuron; layer and index are expected, such as 15:12975."),
        (["--top", "0"], 2, "--top"),
    ],
)
def test_what_is_not_there(
    given: list[str], arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = explain([*given, *arguments, "-q"], capsys)
    assert (found, out) == (code, "")
    assert said in err
