"""What is taken up of an earlier run, and what is not: answers to other personas, another model's, leftovers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from chat_models import tiny_chat_model, tiny_tokenizer
from identify_process import TOKENIZER, chat_model, contents, personas, questions, run

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.identification.elicit import Transcript, read_transcripts, write_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.identification.questions import Material
from npti_export.identification.stages import run_elicit, run_elicit_and_measure, run_measure
from npti_export.identification.work import made_with_of
from npti_export.pipeline import work_with
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question


def made(folder: Path, of_personas: list[Persona], of_questions: list[Question]) -> dict[str, bytes]:
    material = Material.of(of_questions, of_personas, 100, 0)
    run_elicit_and_measure(work_with(chat_model(), TOKENIZER, 8), TraitFiles(folder, "openness"), material)
    return contents(folder)


def test_a_persona_that_changed_poles_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    """The texts and their order stay: what moves is where the high ones end and the low ones begin."""
    before = personas("openness")
    moved = [replace(persona, pole=Pole.LOW) if at == 2 else persona for at, persona in enumerate(before)]
    assert [persona.text for persona in before] == [persona.text for persona in moved]
    made(tmp_path / "adapter", before, questions("openness"))
    found = made(tmp_path / "adapter", moved, questions("openness"))
    poles = {persona.text: persona.pole for persona in moved}
    transcripts = read_transcripts(TraitFiles(tmp_path / "adapter", "openness").transcripts)
    assert all(poles[transcript.persona] is transcript.pole for transcript in transcripts)
    assert found == made(tmp_path / "anew", moved, questions("openness"))


def test_questions_of_other_facets_come_in_their_own_order(tmp_path: Path) -> None:
    before = questions("openness", 12)
    other = [replace(question, facet=f"facet {at % 2}") for at, question in enumerate(before)]
    first = made(tmp_path / "adapter", personas("openness"), before)
    found = made(tmp_path / "adapter", personas("openness"), other)
    assert found != first
    assert found == made(tmp_path / "anew", personas("openness"), other)


def test_transcripts_of_another_model_are_refused(tmp_path: Path) -> None:
    """Whose numbers stand for other words here, or for none."""
    files = TraitFiles(tmp_path, "openness")
    work = work_with(chat_model(), TOKENIZER, 8)
    run_elicit(work, files, Material.of(questions("openness"), personas("openness"), 100, 0))
    mine = read_transcripts(files.transcripts)
    for tokens in ((10**9, 1), (2**70,), (-1,), tuple(token + 1 for token in mine[1].token_ids)):
        others = [mine[0], replace(mine[1], token_ids=tokens), *mine[2:]]
        write_transcripts(files.transcripts, others)
        with pytest.raises(NptiError, match=r"openness\.jsonl, answer 2: its tokens are not its text by this model's"):
            run_measure(work, files)
    assert not files.measurement.exists()
    write_transcripts(files.transcripts, mine)
    assert run_measure(work, files).transcripts == len(mine)


def test_answers_kept_where_all_is_done_are_not_left_about(tmp_path: Path) -> None:
    """``elicit`` copies what is there before it asks for more; killed then, it leaves that."""
    whole = made(tmp_path, personas("openness"), questions("openness"))
    files = TraitFiles(tmp_path, "openness")
    work = work_with(chat_model(), TOKENIZER, 8)
    material = Material.of(questions("openness"), personas("openness"), 100, 0)
    write_transcripts(files.partial(made_with_of(work, material)), read_transcripts(files.transcripts))
    assert contents(tmp_path) != whole
    assert made(tmp_path, personas("openness"), questions("openness")) == whole


def test_blanks_around_a_text_are_not_another_models(tmp_path: Path) -> None:
    """Tokens hold what the text leaves out: the end sign, and blanks at either end."""
    files = TraitFiles(tmp_path, "openness")
    tokenizer = tiny_tokenizer()
    said = tuple(tokenizer("  so it is \n")["input_ids"])
    given = [Transcript("openness", pole, f"{at}?", "P.", "so it is", (*said, 1), True) for pole in Pole for at in "ab"]
    write_transcripts(files.transcripts, given)
    assert run_measure(work_with(tiny_chat_model(), tokenizer), files).transcripts == 4


@pytest.mark.slow
def test_traits_that_two_runs_write_at_a_time_are_both_kept(tmp_path: Path) -> None:
    """While the first looks for its dose the second begins and ends."""
    folder = tmp_path / "adapter"

    @contextmanager
    def stage(what: str, _steps: int) -> Iterator[Callable[[int], None]]:
        if what == "openness: find the dose":
            run(folder, "neuroticism")
        yield lambda _done: None

    found = run(folder, stage=stage)
    assert list(found.adapter.traits) == ["openness", "neuroticism"]
    assert PersonalityAdapter.from_pretrained(folder) == found.adapter
    run(tmp_path / "in turn", ["openness", "neuroticism"])
    assert contents(folder) == contents(tmp_path / "in turn")


def test_what_is_no_file_of_transcripts_is_said(tmp_path: Path) -> None:
    files = TraitFiles(tmp_path, "openness")
    files.transcripts.mkdir(parents=True)
    with pytest.raises(NptiError, match=r"openness\.jsonl cannot be read \(Is a directory\)"):
        run_measure(work_with(chat_model(), TOKENIZER), files)
    files.transcripts.rmdir()
    files.transcripts.write_text(json.dumps({"question": "Q?"}) + "\n\n")
    with pytest.raises(NptiError, match="line 1: no transcript"):
        run_measure(work_with(chat_model(), TOKENIZER), files)
