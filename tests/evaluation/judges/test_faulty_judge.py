"""Against a judge whose replies go wrong in 20 %: each judgement is right or counted, and none is asked twice."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from judge_process import ANSWERS, CONCURRENCY, QUESTIONS, judge_all, rule
from judge_server import ENOUGH, FAULTS, FINAL, SECRET, TRANSIENT, JudgeServer, serving

from npti_export.evaluation.judges.judgement import Judgement, failure_counts
from npti_export.evaluation.judges.rubric import material

FAILURES = {
    "off schema": "no score in the reply",
    "off scale": "the score is off the scale of 1 to 5",
    "out of tokens": "the reply was cut off",
    "refusal": "the judge refused",
}
MATERIALS = [material(question, answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["judge_process"])


def check_outcomes(judgements: list[Judgement], server: JudgeServer) -> None:
    """Each judgement is what the last reply to it says, by the rule or as the kind of failure that it was."""
    last = {asked.material: asked for asked in server.asked}
    for told, question, answer, judgement in zip(MATERIALS, QUESTIONS, ANSWERS, judgements, strict=True):
        assert (judgement.question, judgement.answer) == (question, answer)
        if last[told].fate == ENOUGH:
            assert (judgement.score, judgement.failure) == (float(rule(last[told])), None)
        else:
            assert judgement.score is None
            assert judgement.failure is not None
            assert judgement.failure.startswith(FAILURES.get(last[told].fate, "the server "))


def test_each_judgement_is_right_or_counted_as_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.jsonl"
    with serving(JudgeServer(rule, faults=0.2, seed=1, slowness=3.0)) as server, caplog.at_level(logging.DEBUG):
        judgements = judge_all(server.url, record, timeout=1.0)
        fates = Counter(asked.fate for asked in server.asked)
        assert set(fates) == {ENOUGH, *FAULTS}  # every fault was there
        check_outcomes(judgements, server)
        # A busy machine may be too late with any reply, which is then asked for again: the last one counts.
        last = Counter({asked.material: asked.fate for asked in server.asked}.values())
        failed = failure_counts(judgement.failure for judgement in judgements)
        assert failed == {FAILURES[fate]: last[fate] for fate in FINAL if last[fate]}
        assert server.most_under_way <= CONCURRENCY + fates["slow"]  # those that were given up are still under way

        asked = len(server.asked)
        assert judge_all(server.url, record, timeout=1.0) == judgements
        assert len(server.asked) == asked
    said = caplog.text + "".join(capfd.readouterr())
    for secret in (SECRET, "Question 7", "Answer 7", "You rate how"):
        assert secret not in said
    # Raw replies are kept, those without a score too; the key is not.
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) == len(QUESTIONS)
    refused = [line for line in lines if line["failure"] and line["failure"].startswith("the judge refused")]
    assert {line["reply"] for line in refused} == {"I'm sorry, I can't rate people."}
    assert json.loads(next(line["reply"] for line in lines if line["score"] == 3.0)) == {
        "reason": "Because of 3.",
        "score": 3,
    }
    assert {tuple(line["tokens"]) for line in lines} == {(500, 20)}
    assert SECRET not in record.read_text()


@pytest.mark.slow
def test_killed_and_run_again_none_is_asked_twice(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with serving(JudgeServer(rule, faults=0.2, seed=2, slowness=3.0, pause=0.02)) as server:
        kept_before, kills = set(), 0
        for enough in (20, 55, 90):
            process = FORKS.Process(target=judge_all, args=(server.url, record, 1.5))
            process.start()
            while len(paid(server)) < enough:
                assert process.exitcode is None
                time.sleep(0.005)
            process.kill()
            process.join()
            kills += process.exitcode == -9
            kept = {line["key"] for line in map(json.loads, record.read_text().splitlines())}
            assert kept_before < kept
            assert len(kept) < len(QUESTIONS)
            kept_before = kept
        assert kills == 3
        asked_before = len(server.asked)
        kept_materials = {
            material(line["question"], line["answer"]) for line in map(json.loads, record.read_text().splitlines())
        }
        judgements = judge_all(server.url, record, 1.5)
        asked_again = {asked.material for asked in server.asked[asked_before:]}
        # What stands in the record is not asked about, and all the rest is.
        assert asked_again == set(MATERIALS) - kept_materials
        check_outcomes(judgements, server)
        # A reply that was under way when the process died cannot be kept: no more than those.
        replies: dict[str, int] = defaultdict(int)
        for told in paid(server):
            replies[told] += 1
        assert sum(times - 1 for times in replies.values()) <= kills * CONCURRENCY
    lines = record.read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == len(QUESTIONS)


def paid(server: JudgeServer) -> list[str]:
    """The questions to which a whole reply was sent."""
    return [asked.material for asked in list(server.asked) if asked.fate not in TRANSIENT]
