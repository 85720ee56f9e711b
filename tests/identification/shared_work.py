"""Work that tests have done by several processes; each function runs in every one of them."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from identify_process import TOKENIZER, chat_model, personas, questions, run, some_questions
from torch import distributed as dist

from npti_export.errors import NptiError
from npti_export.identification.files import TraitFiles
from npti_export.identification.processes import add_up, first_does, from_all, in_turns, number, processes
from npti_export.identification.stages import run_elicit_and_measure, run_given_and_measure
from npti_export.pipeline import plan_traits, work_with


def joined(name: str, which: int, of: int, folder: Path, says: Connection) -> None:
    """Joins the group, does the named work of this file, and sends what it returned."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=which, world_size=of)
    says.send(globals()[name](folder))
    dist.destroy_process_group()


def elicit_and_measure(folder: Path) -> list[int]:
    """One trait of 6 questions: 12 answers, three rows a batch, so that the last turn is not for all processes."""
    steps: list[int] = []
    work = work_with(chat_model(), TOKENIZER, batch_size=5)
    files = TraitFiles(folder / "adapter", "openness")
    material = plan_traits(["openness"], questions, personas)["openness"]
    transcripts, _, _ = run_elicit_and_measure(work, files, material, progress=steps.append)
    run_given_and_measure(work, TraitFiles(folder / "given", "openness"), transcripts)
    return steps


def identify(folder: Path) -> str:
    """All of it, two traits of 26 questions."""
    found = run(folder / "adapter", ["openness", "neuroticism"], questions=some_questions)
    return repr(found.reasons)


def exchange(_folder: Path) -> dict[str, object]:
    """What the functions that processes meet in give."""
    mine = torch.tensor([number() + 1, 2**40])
    add_up(mine)

    def raises() -> None:
        raise NptiError(f"no room, says {number()}")

    try:
        first_does(raises)
        said = ""
    except NptiError as error:
        said = str(error)
    return {
        "processes": processes(),
        "sum": mine.tolist(),
        "from_all": from_all(number() * 10),
        "first": first_does(lambda: f"by {number()}"),
        "raised": said,
        "turns": list(in_turns(["a", "b", "c"])),
    }
