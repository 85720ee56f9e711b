"""A trait of one's own from the first template to an adapter that plays it, by the commands that the docs name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from identify_process import TOKENIZER, chat_model
from pytest_httpserver import HTTPServer
from small_chat_server import SmallChatServer, completion
from transformers import AutoModelForCausalLM
from werkzeug import Response

from npti_export import load_personality
from npti_export.cli import main
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.draft import A_FACET, A_TOPIC, TEST_TOPICS, TOPICS
from npti_export.traits import Pole
from npti_export.traits.trait_file import read_trait_file

FACETS = 6
REQUESTS = FACETS * (2 + len(TOPICS) + len(TEST_TOPICS))


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def described(path: Path) -> None:
    """A person fills in the template: both ends, and a clause for each end of each facet."""
    text = path.read_text(encoding="utf-8")
    text = text.replace('high = ""', 'high = "funny"', 1).replace('low = ""', 'low = "earnest"', 1)
    for at in range(1, FACETS + 1):
        text = text.replace('high = ""', f'high = "likes joke {at}"', 1)
        text = text.replace('low = ""', f'low = "does not like joke {at}"', 1)
    path.write_text(text, encoding="utf-8")


def written_by_a_model(body: dict) -> Response:
    """Numbered lines in quotes with a preface, as chat models write them, each different from all others."""
    asked = body["messages"][0]["content"]
    facet = re.search(r"facet (\d)", asked)
    assert facet is not None
    if topic := re.search(r"questions about ([a-z ]+) to ask", asked):
        lines = [f'{n}. "Zone {facet[1]}, {topic[1]}: case {n}{topic[1][::-1]}?"' for n in range(1, A_TOPIC + 1)]
    else:
        end = "funny" if "all are like this: likes" in asked else "earnest"
        lines = [f"- You are {end} {facet[1]}{'abcdefg'[n]}." for n in range(A_FACET)]
    return completion("\n".join(["Of course! Here they are:", "", *lines, "", "I hope this helps."]))


def test_template_then_drafts_then_a_check(
    httpserver: HTTPServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "wit.toml"
    output = ["--output", str(path)]
    code, out, err = run(["new-trait", "wit", *output], capsys)
    assert code == 0, err
    assert out == f"Written to {path}. Describe the two ends and the facets there, then run this again.\n"
    code, _, err = run(["new-trait", "wit", *output], capsys)
    assert (code, err) == (
        1,
        f"Error: {path}: high is empty; write it, or leave the line out if it stands in a list.\n",
    )

    described(path)
    before = path.read_bytes()
    code, out, err = run(["new-trait", "wit", *output], capsys)
    assert code == 0, err
    assert "6 facets, personas 0 high, 0 low, 0 questions, 0 test questions." in out
    assert "Missing: personas of the low pole" in out
    assert "Missing: 35 more questions (identification needs 35)" in out
    assert path.read_bytes() == before

    server = SmallChatServer(httpserver)
    server.reply = written_by_a_model
    server.lost_after = 30
    draft = ["new-trait", "wit", *output, "--draft-url", server.url, "--json", "-q"]
    code, _, err = run(draft, capsys)
    assert (code, "shutting down" in err) == (1, True)
    assert path.read_bytes() == before
    server.lost_after = None
    code, out, err = run(draft, capsys)
    assert code == 0, err
    assert len(server.asked) == REQUESTS  # none of the first 30 was asked again
    told = json.loads(out)
    assert (told["facets"], told["missing"]) == (FACETS, [])
    assert told["personas"] == {"high": FACETS * A_FACET, "low": FACETS * A_FACET}
    assert told["questions"] == FACETS * len(TOPICS) * A_TOPIC
    assert told["test_questions"] == FACETS * len(TEST_TOPICS) * A_TOPIC
    own = read_trait_file(path)
    assert all(persona.text.startswith("You are ") for persona in own.personas)
    assert all("funny" in text for text in own.personas_of(Pole.HIGH))
    assert all(text.text.startswith("Zone ") and text.text.endswith("?") for text in own.questions)
    assert {question.text.split(",")[0][-1] for question in own.questions if question.facet == "facet_3"} == {"3"}
    assert (tmp_path / "wit.toml.bak").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["wit.toml", "wit.toml.bak"]
    for question, reason in told["look_again"].items():  # what is to be looked at again is marked in the file
        marked = f"    # flagged: {reason}\n    {json.dumps(question)},\n"
        assert marked in path.read_text(encoding="utf-8")

    # What a person has edited stays: only the facet that is empty is drafted again.
    edited = path.read_text(encoding="utf-8").replace("You are funny 1a.", "You laugh at everything.")
    path.write_text(edited, encoding="utf-8")
    server.asked.clear()
    assert run(draft, capsys)[0] == 0
    assert server.asked == []
    assert path.read_text(encoding="utf-8") == edited


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["new-trait", "openness"], 1, "nor a shipped trait (openness, conscientiousness"),
        (["new-trait", "../wit"], 1, "cannot be called '../wit'"),
        (["new-trait", "wit", "--draft-model", "m"], 2, "name that with --draft-url"),
        (["identify", "--trait-file", "nowhere.toml"], 1, "nowhere.toml cannot be read"),
        (["identify", "--trait", "openness", "--elicit-model", "m"], 2, "name that with --elicit-url"),
        (["identify", "--trait", "openness", "--elicit-url", "localhost"], 1, "address is not one"),
        (["elicit", "--trait", "openness", "--elicit-url", "http://a/v1", "--transcripts", "b"], 2, "choose one"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, out, err = run(arguments, capsys)
    assert (found, out) == (code, "")
    assert said in err
    assert not list(Path.cwd().iterdir())


def small_trait(folder: Path) -> Path:
    """A trait file whose personas and questions fit into the context of the tiny model."""
    path = folder / "wit.toml"
    ends = {pole: json.dumps([f"{pole} {at}" for at in range(3)]) for pole in Pole}
    facets = [
        f'[[facets]]\nname = "f{at}"\nhigh = "a"\nlow = "b"\n'
        f"questions = {json.dumps([f'{at}{letter}?' for letter in 'abcdefghijklmno'])}\n"
        f"test_questions = {json.dumps([f'T{at}{letter}?' for letter in 'abc'])}\n"
        for at in range(3)
    ]
    head = f'name = "wit"\nhigh = "funny"\nlow = "earnest"\n[personas]\nhigh = {ends["high"]}\nlow = {ends["low"]}\n'
    path.write_text(head + "".join(facets), encoding="utf-8")
    return path


@pytest.mark.slow
def test_from_the_file_to_the_adapter_and_its_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model().save_pretrained(tmp_path / "tiny-chat")
    TOKENIZER.save_pretrained(tmp_path / "tiny-chat")
    trait = ["--trait-file", str(small_trait(tmp_path))]
    model = ["--model", str(tmp_path / "tiny-chat")]
    adapter = tmp_path / "adapter"
    code, _, err = run(["identify", *trait, *model, "--output", str(adapter), "-q"], capsys)
    assert code == 0, err
    assert (adapter / "wit.safetensors").exists()
    assert len((adapter / "transcripts" / "wit.jsonl").read_text().splitlines()) == 2 * 15

    # Each stage alone, on what is there; no stage needs more of the file than the name.
    code, _, err = run(["measure", *trait, *model, "--output", str(adapter), "-q"], capsys)
    assert code == 0, err
    code, out, err = run(["select", *trait, *model, "--output", str(adapter), "--json"], capsys)
    assert code == 0, err
    assert [row["personality"] for row in json.loads(out)["poles"]] == ["wit+", "wit-"]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny-chat")
    asked, decoding = [Prompt("Ta?")], Decoding(12, 1.0)
    plain = generate_answers(loaded, TOKENIZER, asked, decoding)
    with load_personality(loaded, "wit+", adapter=str(adapter)):
        assert generate_answers(loaded, TOKENIZER, asked, decoding) != plain
    assert generate_answers(loaded, TOKENIZER, asked, decoding) == plain

    evaluate = ["eval", "--personality", "wit+", *model, "--adapter", str(adapter), "--json", "-q"]
    code, out, err = run([*evaluate, *trait], capsys)
    assert code == 0, err
    assert "wit+" in out
    code, _, err = run(evaluate, capsys)
    assert (code, "no trait 'wit'" in err) == (1, True)
