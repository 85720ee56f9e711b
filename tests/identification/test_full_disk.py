"""A disk that is full: one sentence and nothing half-written; with room again the same call ends in the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from identify_process import TOKENIZER, chat_model, contents, personas, questions, run
from pytest_httpserver import HTTPServer
from small_chat_server import SmallChatServer

from npti_export.errors import NptiError
from npti_export.identification.elicit import Transcript, append_transcripts, read_transcripts
from npti_export.identification.endpoint import Endpoint
from npti_export.identification.files import TraitFiles
from npti_export.identification.stages import run_elicit, run_elicit_and_measure
from npti_export.pipeline import plan_traits, work_with
from npti_export.traits import Pole

resource = pytest.importorskip("resource", reason="Windows bounds no file")


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Of each file the system takes so many bytes: a write beyond takes what fits, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def asked_and_measured(folder: Path) -> dict[str, bytes]:
    work = work_with(chat_model(), TOKENIZER, batch_size=8)
    material = plan_traits(["openness"], questions, personas)["openness"]
    run_elicit_and_measure(work, TraitFiles(folder, "openness"), material)
    return contents(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return asked_and_measured(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "room",
    [lambda _answers: 0, lambda _answers: 50, lambda answers: answers - 10, lambda answers: answers + 1],
    ids=["none", "half a line", "all answers but one", "all answers"],
)
def test_asked_and_measured_with_room_again(
    tmp_path: Path, whole: dict[str, bytes], room: Callable[[int], int]
) -> None:
    answers = len(whole["transcripts/openness.jsonl"])
    assert answers + 1 < len(whole["statistics/openness_high.safetensors"])
    with room_for(room(answers)), pytest.raises(NptiError, match=r"cannot be written \(File too large\); make room"):
        asked_and_measured(tmp_path / "adapter")
    left = contents(tmp_path / "adapter")
    assert not [name for name in left if name.endswith(".new")]
    assert all(data == whole[name] for name, data in left.items() if not name.endswith(".partial"))
    assert asked_and_measured(tmp_path / "adapter") == whole


def test_what_is_added_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    said = Transcript("openness", Pole.HIGH, "Q?", "P.", "A.", (4, 5), True)
    append_transcripts(path, [said])
    before = path.read_bytes()
    with room_for(len(before) + 10), pytest.raises(NptiError, match="goes on with the answers that are there"):
        append_transcripts(path, [said])
    assert path.read_bytes() == before
    append_transcripts(path, [said])
    assert read_transcripts(path) == [said, said]


def test_answers_of_a_server_that_find_no_room(httpserver: HTTPServer, tmp_path: Path) -> None:
    """Those under way are told too, after the first that found none; each leaves the file as it was."""
    server = SmallChatServer(httpserver)
    material = plan_traits(["openness"], questions, personas)["openness"]
    work = work_with(chat_model(), TOKENIZER, batch_size=8, endpoint=Endpoint(server.url, concurrency=4))
    run_elicit(work, TraitFiles(tmp_path / "whole", "openness"), material)
    with room_for(400), pytest.raises(NptiError, match="make room, and the same command goes on"):
        run_elicit(work, TraitFiles(tmp_path / "adapter", "openness"), material)
    run_elicit(work, TraitFiles(tmp_path / "adapter", "openness"), material)
    assert contents(tmp_path / "adapter") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_an_adapter_that_finds_no_room(tmp_path: Path) -> None:
    """All is there but the dose: what it gave cannot be written, and is found again."""
    run(tmp_path / "whole")
    asked_and_measured(tmp_path / "adapter")
    before = contents(tmp_path / "adapter")
    with room_for(300), pytest.raises(NptiError, match=r"adapter cannot be written to .*File too large"):
        run(tmp_path / "adapter")
    assert contents(tmp_path / "adapter") == before
    run(tmp_path / "adapter")
    assert contents(tmp_path / "adapter") == contents(tmp_path / "whole")
