"""A run of the OpenAI judge in a process of its own, which is killed."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from judge_server import SECRET, Asked

from npti_export.evaluation.judges import chat_requests
from npti_export.evaluation.judges.judgement import Judgement
from npti_export.evaluation.judges.openai_judge import OpenAIJudge
from npti_export.traits import trait_named

QUESTIONS = [f"Question {at}?" for at in range(150)]
ANSWERS = [f"Answer {at}{'!' * (at % 5)}" for at in range(150)]
CONCURRENCY = 6


def rule(asked: Asked) -> int:
    """Exclamation marks: none is 1, four are 5."""
    return 1 + asked.material.count("!")


def judge_all(url: str, record: Path, timeout: float) -> list[Judgement]:
    environment = {"OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
    with (
        patch.dict(os.environ, environment),
        patch.object(chat_requests, "TIMEOUT", timeout),
        patch("openai._base_client.INITIAL_RETRY_DELAY", 0.01),
    ):
        judge = OpenAIJudge(trait_named("openness"), base_url=url, record=record, concurrency=CONCURRENCY)
        return judge.judge(QUESTIONS, ANSWERS)
