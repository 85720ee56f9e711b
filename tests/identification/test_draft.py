"""What is read out of the replies of a model that drafts; the command around it is in tests/cli/test_new_trait.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from small_chat_server import SmallChatServer, completion

from npti_export.errors import NptiError
from npti_export.identification.draft import draft, lines_of
from npti_export.identification.endpoint import Endpoint
from npti_export.traits import Facet, Trait
from npti_export.traits.trait_file import OwnTrait

WIT = OwnTrait(Trait("wit", "funny", "earnest", (Facet("puns", "likes puns", "likes none"),)))


@pytest.mark.parametrize(
    ("reply", "lines"),
    [
        ("What do you wear?\nWho calls?", ["What do you wear?", "Who calls?"]),
        (
            'Sure!\n\n1. "What now?"\n2) You sing.\n(3) You bow.\n- You sit.',
            ["Sure!", "What now?", "You sing.", "You bow.", "You sit."],
        ),
        ("**What now?**\n1. **Who calls?**\n* You *really* sing.", ["What now?", "Who calls?", "You *really* sing."]),
        ("<think>What if?\nHm?</think>\nWhat now?", ["What now?"]),
        ("What if?\nHm?\n</think>\n\nWhat now?", ["What now?"]),  # the prompt of DeepSeek-R1 opens the thinking
        ("What now?\n<think>What if?\nHm?", ["What now?"]),
        ("2024 was long, what of it?", ["2024 was long, what of it?"]),
        ("What\x1b[31m now?\u200b", ["What[31m now?"]),
        ("x" * 601 + "?\n \n-", []),
    ],
)
def test_lines(reply: str, lines: list[str]) -> None:
    assert lines_of(reply) == lines


def test_replies_without_a_question_or_a_description(httpserver: HTTPServer, tmp_path: Path) -> None:
    server = SmallChatServer(httpserver)
    server.reply = lambda body: completion("I cannot do that.")
    with pytest.raises(NptiError, match=r"^None of the 16 replies held a question or a description beginning with You"):
        draft(WIT, Endpoint(server.url), tmp_path / "replies")


def test_half_a_kept_reply_is_asked_for_again(httpserver: HTTPServer, tmp_path: Path) -> None:
    """A kill cut the last line; what is whole is not asked for again."""
    server = SmallChatServer(httpserver)
    server.reply = lambda body: completion(f"You {len(server.asked)}.\nCase {len(server.asked)}?\nCase 0?")
    kept = tmp_path / "replies"
    whole = draft(WIT, Endpoint(server.url, concurrency=1), kept)
    assert len(server.asked) == 16
    assert len({question.text for question in whole.questions}) == len(whole.questions) == 11
    kept.write_bytes(kept.read_bytes()[:-20])
    again = draft(WIT, Endpoint(server.url), kept)
    assert len(server.asked) == 17
    assert (again.personas, again.questions) == (whole.personas, whole.questions)
