"""From the options to the judges."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_models import tiny_chat_model, tiny_tokenizer

from npti_export.cli.judging import Judging, check_judge_names
from npti_export.errors import NptiError
from npti_export.evaluation.judges.cost import Budget
from npti_export.evaluation.judges.judgement import Judgement
from npti_export.evaluation.judges.judgement_record import appending
from npti_export.identification.elicit import Transcript, write_transcripts
from npti_export.traits import Pole, trait_named

OPENNESS = trait_named("openness")


@pytest.mark.parametrize(
    "names", [["local"], ["self", "local"], ["openai"], ["openai:gpt-4o-mini", "openai", "self", "local"]]
)
def test_judges_that_are_there(names: list[str]) -> None:
    check_judge_names(names)


@pytest.mark.parametrize(
    ("names", "url", "message"),
    [
        (["gpt"], None, "no judge 'gpt'; local, self or openai:MODEL is expected"),
        (["openai:"], None, "no judge 'openai:'"),
        (["local", "Self"], None, "no judge 'Self'"),
        (["local", "local"], None, "The judge local is named 2 times"),
        (["openai", "self", "openai:gpt-4o-2024-08-06"], None, "openai:gpt-4o-2024-08-06 is named 2 times"),
        (["local", "self"], "http://localhost/v1", "local and self asks no server"),
    ],
)
def test_judges_that_are_not(names: list[str], url: str | None, message: str) -> None:
    with pytest.raises(NptiError, match=message):
        check_judge_names(names, url)


def test_each_judge_has_a_criterion_and_the_first_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    said = [
        Transcript("openness", pole, f"Q{at}?", "You.", f"{pole} {at}", (), True) for at in range(6) for pole in Pole
    ]
    write_transcripts(tmp_path / "said.jsonl", said)
    chosen = Judging(
        ("self", "openai", "local", "openai:gpt-4o-mini"), max_cost=1.0, transcripts=tmp_path / "said.jsonl"
    )
    judges = chosen.judges_of(
        [OPENNESS],
        adapter=tmp_path,
        model=tiny_chat_model(context=8192),
        tokenizer=tiny_tokenizer(),
        output=tmp_path,
        budget=chosen.budget(quiet=True),
    )
    assert list(judges) == ["openness"]
    assert [(judge.name, judge.criterion) for judge in judges["openness"]] == [
        ("self", "trait"),
        ("self", "fluency"),
        ("openai:gpt-4o-2024-08-06", "trait"),
        ("openai:gpt-4o-2024-08-06", "fluency"),
        ("local", "trait"),
        ("openai:gpt-4o-mini", "trait"),
        ("openai:gpt-4o-mini", "fluency"),
    ]


def test_judgements_are_kept_in_the_users_cache_where_there_is_no_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    for output in (None, tmp_path / "out"):
        folder = output or tmp_path / "cache"
        monkeypatch.setenv("NPTI_EXPORT_HOME", str(tmp_path / "cache"))
        judges = Judging(("openai",)).judges_of(
            [OPENNESS], adapter=tmp_path, model=None, tokenizer=None, output=output, budget=Budget(1.0)
        )
        judge = judges["openness"][0]
        assert judge.cost(["Q?"], ["A."]).calls == 1
        kept = Judgement("Q?", "A.", "openness", judge.name, 4.0, "", None)
        with appending(folder / "judgements.jsonl") as record:
            record.append(judge._key("Q?", "A."), kept, "", None)  # type: ignore[union-attr]
        assert judge.judge(["Q?"], ["A."]) == [kept]


def test_a_local_judge_without_transcripts_says_what_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "transcripts").mkdir()
    file = tmp_path / "transcripts" / "openness.jsonl"
    file.write_text("", encoding="utf-8")
    with pytest.raises(NptiError, match="--transcripts, or use --judge self or --judge openai:MODEL"):
        Judging(("local",)).judges_of([OPENNESS], adapter=tmp_path, model=None, tokenizer=None)


def test_transcripts_that_were_named_are_those_of_the_trait_alone(tmp_path: Path) -> None:
    said = [
        Transcript(trait, Pole.HIGH, f"{trait} {at}?", "You.", "Yes.", (), True)
        for at in range(3)
        for trait in ("openness", "neuroticism")
    ]
    write_transcripts(tmp_path / "said.jsonl", said)
    found = Judging(("self",), transcripts=tmp_path / "said.jsonl").transcripts_of("neuroticism", tmp_path)
    assert [one.question for one in found] == ["neuroticism 0?", "neuroticism 1?", "neuroticism 2?"]
    assert Judging(("self",)).transcripts_of("openness", tmp_path) == []
    with pytest.raises(NptiError, match=r"There is no file .*none\.jsonl; --transcripts names"):
        Judging(("self",), transcripts=tmp_path / "none.jsonl")
    with pytest.raises(NptiError, match="no judge 'gpt'"):
        Judging(("gpt",))
