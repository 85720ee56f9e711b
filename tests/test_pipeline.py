"""``identify`` from end to end on a tiny chat model: bytes, resuming, folders, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from identify_process import TOKENIZER, chat_model, contents, many_questions, personas, questions, run
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.records import Method
from npti_export.errors import NptiError
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.identification.questions import BLOCK_QUESTIONS
from npti_export.identification.selection import read_measured, select_into
from npti_export.identification.stages import run_elicit, run_measure
from npti_export.pipeline import HELD_BACK, Identified, identify, plan_traits, split_questions, work_with
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question, material_sha256


@contextmanager
def generating(model: LlamaForCausalLM) -> Iterator[list[int]]:
    """Rows that each ``generate`` call of the block starts with."""
    rows: list[int] = []

    def note(_module: object, _arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        if keywords.get("past_key_values") is not None and keywords["input_ids"].shape[1] > 1:
            rows.append(keywords["input_ids"].shape[0])

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Identified:
    """One unbroken run; nobody writes into its folder."""
    return run(tmp_path_factory.mktemp("identified") / "adapter")


def test_what_a_run_leaves(first: Identified) -> None:
    files = contents(first.folder)
    assert set(files) == {
        "README.md",
        "config.json",
        "openness.safetensors",
        "statistics/openness.done.json",
        "statistics/openness.json",
        "statistics/openness_high.safetensors",
        "statistics/openness_low.safetensors",
        "transcripts/openness.json",
        "transcripts/openness.jsonl",
    }
    adapter = PersonalityAdapter.from_pretrained(first.folder)  # every check of the format
    assert adapter.base_model.id == "tests/tiny-chat"
    record = adapter.traits["openness"]
    asked, held_back = split_questions(questions("openness"), 100, seed=0)
    assert (len(asked), len(held_back)) == (6, HELD_BACK)
    transcripts = read_transcripts(first.folder / "transcripts" / "openness.jsonl")
    assert [t.question for t in transcripts] == [question.text for question in asked for _ in Pole]
    found = record.identification
    assert (found.source, found.transcripts, found.seed) == ("identified", 12, 0)
    assert found.questions_sha256 == material_sha256(question.text for question in asked)
    assert found.personas_sha256 == material_sha256(persona.text for persona in personas("openness"))
    for pole, of_pole in record.poles.items():
        assert found.tokens[pole] == sum(len(t.token_ids) - 1 for t in transcripts if t.pole is pole)
        assert of_pole.calibrated
        assert len(of_pole.dose_curve) == 6
        assert of_pole.gamma in {point.gamma for point in of_pole.dose_curve}
    statistics, measurement, base_model = read_measured(TraitFiles(first.folder, "openness"))
    assert base_model == adapter.base_model
    assert measurement == first.measurements["openness"]
    [point] = measurement.curve
    assert (point.questions, point.split_half) == (6, found.split_half_reliability)
    assert (point.overlap, point.margin) == (found.selection_overlap, found.delta_margin)
    halves = [
        statistics[Pole.HIGH].halves[half].probability - statistics[Pole.LOW].halves[half].probability
        for half in (0, 1)
    ]
    r = np.corrcoef(*halves)[0, 1]
    assert point.split_half == pytest.approx(2 * r / (1 + r), abs=1e-6)
    for pole, faults in measurement.answers.items():
        of_pole = [t for t in transcripts if t.pole is pole]
        assert (faults.answers, faults.broken_off) == (6, sum(not t.finished for t in of_pole))
    assert set(first.auc) == {"openness"}
    with load_personality(chat_model(), "openness-", first.folder) as personality:
        assert personality.spec == "openness-"


def test_poles_share_no_neuron(first: Identified) -> None:
    poles = first.adapter.traits["openness"].poles.values()
    high, low = ({*zip(p.neurons.layer.tolist(), p.neurons.index.tolist(), strict=True)} for p in poles)
    assert high
    assert low
    assert not high & low


def test_a_second_run_gives_the_same_bytes(first: Identified, tmp_path: Path) -> None:
    run(tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == contents(first.folder)
    run(tmp_path / "elsewhere")  # into the folder that it wrote itself
    assert contents(tmp_path / "elsewhere") == contents(first.folder)


def test_the_seed_is_an_input(first: Identified, tmp_path: Path) -> None:
    run(tmp_path / "adapter", seed=1)
    assert contents(tmp_path / "adapter")["config.json"] != contents(first.folder)["config.json"]


@contextmanager
def interrupted(name: str, after: int) -> Iterator[Callable[..., object]]:
    """A ``stage`` that stops the run within the stage of that name."""

    @contextmanager
    def stage(what: str, _steps: int) -> Iterator[Callable[[int], None]]:
        count = 0

        def progress(done: int) -> None:
            nonlocal count
            count += done
            if name in what and count >= after:
                raise KeyboardInterrupt

        yield progress

    yield stage


@pytest.mark.parametrize(
    ("name", "after", "kept"), [("answers", 1, 8), ("answers", 12, 12), ("answers", 13, 12), ("dose", 30, 12)]
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    first: Identified, tmp_path: Path, name: str, after: int, kept: int
) -> None:
    folder = tmp_path / "adapter"
    with interrupted(name, after) as stage, pytest.raises(KeyboardInterrupt):
        run(folder, stage=stage)
    assert not (folder / "config.json").exists()
    if name == "dose":
        assert len(read_transcripts(folder / "transcripts" / "openness.jsonl")) == kept
    else:
        [partial] = (folder / "transcripts").iterdir()
        assert len(read_transcripts(partial)) == kept
        partial.write_bytes(partial.read_bytes() + b'{"trait": "open')  # as if killed within the next line

    model = chat_model()
    with generating(model) as rows:
        run(folder, model=model)
    assert contents(folder) == contents(first.folder)
    assert sum(rows) == 12 - kept + 13 * HELD_BACK


def test_answers_of_other_weights_are_not_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with interrupted("answers", 5) as stage, pytest.raises(KeyboardInterrupt):
        run(folder, stage=stage)
    other = chat_model(seed=1)
    with generating(other) as rows:
        run(folder, model=other)
    assert sum(rows) == 12 + 13 * HELD_BACK
    assert sorted(path.name for path in (folder / "transcripts").iterdir()) == ["openness.json", "openness.jsonl"]


def test_a_second_trait_keeps_the_first(first: Identified, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    run(folder)
    found = run(folder, "neuroticism")
    files = contents(folder)
    for name in ("openness.safetensors", "transcripts/openness.jsonl", "statistics/openness_high.safetensors"):
        assert files[name] == contents(first.folder)[name]
    config = json.loads(files["config.json"])
    assert config["traits"]["openness"] == json.loads(contents(first.folder)["config.json"])["traits"]["openness"]
    assert list(found.adapter.traits) == ["openness", "neuroticism"]
    both = tmp_path / "both"
    assert set(run(both, ["openness", "neuroticism"]).auc) == {"openness", "neuroticism"}
    assert contents(both) == files


def test_a_trait_of_ones_own(tmp_path: Path) -> None:
    found = run(tmp_path / "adapter", "dry_wit")
    assert list(found.adapter.traits) == ["dry_wit"]
    with load_personality(chat_model(), "dry_wit+0.5", tmp_path / "adapter"):
        pass


def test_where_nothing_is_said_the_folder_is_below_the_working_directory() -> None:
    found = identify(chat_model(), TOKENIZER, "openness", questions=questions, personas=personas)
    assert found.folder == Path("adapters/tests--tiny-chat")
    with load_personality(chat_model(), "openness+"):
        pass


def test_personas_that_do_not_take_are_a_warning_and_without_any_difference_an_error(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NptiError, match="openness: no neuron fires more at the high pole"):
        run(
            tmp_path / "adapter",
            personas=lambda trait: [Persona(trait, pole, "nobody") for pole in Pole],
            warn=said.append,
        )
    broken_off = sum(not t.finished for t in read_transcripts(tmp_path / "adapter" / "transcripts" / "openness.jsonl"))
    [warning] = said
    start = "openness: the personas' answers can hardly be told apart (AUC 0.50, expected 0.7 or more; high pole: "
    assert warning.startswith(start)
    assert warning.endswith(", so the neurons found may mean little; a larger chat model plays them better.")
    assert f"{broken_off // 2} broken off of 6 answers; low pole:" in warning


def refused(folder: Path, message: str, model: LlamaForCausalLM | None = None, **options: object) -> None:
    """Refused, and before any answer was asked for."""
    model = model or chat_model()
    with generating(model) as rows, pytest.raises(NptiError, match=message):
        run(folder, model=model, **options)
    assert rows == []


@pytest.mark.parametrize("seed", [0, 1], ids=["other name", "other weights"])
def test_another_base_models_folder_is_refused(first: Identified, seed: int) -> None:
    before = contents(first.folder)
    other = chat_model(seed, name="tests/tiny-chat" if seed else "tests/other")
    refused(first.folder, "holds the adapter of another base model .* choose another --output", other)
    assert contents(first.folder) == before


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    refused(file / "adapter", "cannot be written .* choose another --output")
    refused(file, "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(first: Identified, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    run(folder)
    folder.chmod(0o500)
    try:
        refused(folder, "cannot be written")
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"questions": lambda trait: questions(trait)[:24]},
            "There are 24 different questions; at least 25 are needed",
        ),
        ({"questions": lambda trait: questions(trait)[:10] * 9}, "There are 10 different questions"),
        ({"questions": lambda _trait: []}, "There are 0 different questions"),
        ({"max_questions": 4}, "max_questions is 4; at least 5"),
        ({"personas": lambda trait: personas(trait)[:3]}, "none of the low pole"),
        ({"traits": ["openness", "Dry Wit"]}, "'Dry Wit' is no name of a trait"),
        ({"traits": "dry_wit", "personas": None}, "There is no trait 'dry_wit'; the shipped traits are openness"),
        ({"traits": "dry_wit", "questions": None}, "There is no trait 'dry_wit'; the shipped traits are openness"),
    ],
)
def test_material_that_does_not_do_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    refused(tmp_path / "adapter", message, **options)
    assert not (tmp_path / "adapter").exists()


def test_questions_are_split_evenly_over_facets() -> None:
    many = [Question("openness", f"{facet} {at}?", facet) for facet in ("a", "b", "c") for at in range(30)]
    asked, held_back = split_questions(many, 12, seed=0)
    assert [len(asked), len(held_back)] == [12, HELD_BACK]
    assert not {question.text for question in asked} & {question.text for question in held_back}
    for part, least in ((asked, 4), (held_back, 6)):
        assert all(sum(question.facet == facet for question in part) >= least for facet in ("a", "b", "c"))
    assert split_questions(many, 12, seed=0) == (asked, held_back)
    assert split_questions(many, 12, seed=1) != (asked, held_back)
    assert [len(part) for part in split_questions(many, 1000, seed=0)] == [70, 20]


def test_it_stops_when_the_halves_agree_and_not_before(tmp_path: Path) -> None:
    """Of 60 questions in blocks of 12; none of a random model's 144 neurons agrees as well as a trained one's."""
    whole = run(tmp_path / "whole", questions=many_questions, reliability=1.0)
    curve = whole.measurements["openness"].curve
    assert [point.questions for point in curve] == [12, 24, 36, 48, 60]
    assert all(-1 <= point.split_half <= 1 for point in curve)
    goal = max(curve[2].split_half, curve[3].split_half)
    stops = next(point.questions for point in curve[2:] if point.split_half >= goal)
    model = chat_model()
    with generating(model) as rows:
        found = run(tmp_path / "stopped", model=model, questions=many_questions, reliability=goal)
    assert found.measurements["openness"].curve == curve[: stops // BLOCK_QUESTIONS]
    assert sum(rows) == 2 * stops + 13 * HELD_BACK
    early = run(tmp_path / "early", questions=many_questions, reliability=0.0)
    assert early.measurements["openness"].curve == curve[:3]  # not before 30 questions
    transcripts = read_transcripts(tmp_path / "whole" / "transcripts" / "openness.jsonl")
    assert read_transcripts(tmp_path / "early" / "transcripts" / "openness.jsonl") == transcripts[:72]


def test_more_questions_take_up_the_answers_that_are_there(tmp_path: Path) -> None:
    run(tmp_path / "adapter", questions=many_questions, reliability=0.0)
    model = chat_model()
    with generating(model) as rows:
        run(tmp_path / "adapter", model=model, questions=many_questions, reliability=1.0)
    assert sum(rows) == 2 * 24 + 13 * HELD_BACK
    run(tmp_path / "whole", questions=many_questions, reliability=1.0)
    assert contents(tmp_path / "adapter") == contents(tmp_path / "whole")
    again = chat_model()
    with generating(again) as rows:
        run(tmp_path / "adapter", model=again, questions=many_questions, reliability=0.0)  # no answer is thrown away
    assert rows == []
    assert contents(tmp_path / "adapter") == contents(tmp_path / "whole")


def test_stages_one_by_one_write_what_identify_writes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", questions=many_questions, reliability=1.0)
    folder = tmp_path / "apart"
    work = work_with(chat_model(), TOKENIZER, 8)
    files = TraitFiles(folder, "openness")
    planned = plan_traits(["openness"], many_questions, personas)
    told: list[int] = []
    run_elicit(work, files, planned["openness"], told.append)
    assert sum(told) == 120
    assert set(contents(folder)) == {"transcripts/openness.json", "transcripts/openness.jsonl"}
    told.clear()
    assert run_measure(work, files, told.append) == whole.measurements["openness"]
    assert sum(told) == 120
    adapter = select_into(folder, ["openness"], Method())
    expected = contents(whole.folder)
    for name, data in contents(folder).items():
        if name.startswith(("transcripts", "statistics")):
            assert data == expected[name], name
    for pole, record in adapter.traits["openness"].poles.items():
        calibrated = whole.adapter.traits["openness"].poles[pole]
        assert (record.calibrated, record.gamma, record.dose_curve) == (False, 1.4, ())
        for array in ("layer", "index", "target", "delta", "mean_difference", "effect_size"):
            np.testing.assert_array_equal(getattr(record.neurons, array), getattr(calibrated.neurons, array))
    assert adapter.traits["openness"].identification == whole.adapter.traits["openness"].identification
    model = chat_model()
    with generating(model) as rows:
        run(folder, model=model, questions=many_questions, reliability=1.0)
    assert sum(rows) == 13 * HELD_BACK  # only the dose was left to find
    assert contents(folder) == expected


def test_select_takes_other_thresholds(first: Identified, tmp_path: Path) -> None:
    run(tmp_path / "adapter")
    chosen = {}
    for min_difference in (0.02, 0.1, 0.4):
        adapter = select_into(tmp_path / "adapter", ["openness"], Method(min_difference=min_difference))
        record = adapter.traits["openness"].poles[Pole.HIGH]
        assert record.method.min_difference == min_difference
        assert (record.neurons.delta >= np.float32(min_difference)).all() or len(record.neurons) == 1
        chosen[min_difference] = len(record.neurons)
    assert chosen[0.02] > chosen[0.1] > chosen[0.4] > 0
    assert PersonalityAdapter.from_pretrained(tmp_path / "adapter") == adapter
    run(tmp_path / "adapter")  # and back: the dose is found again
    assert contents(tmp_path / "adapter") == contents(first.folder)


def test_select_without_statistics_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match=r"statistics/openness\.json is not there; `npti-export measure` writes it"):
        select_into(tmp_path, ["openness"], Method())
    with pytest.raises(NptiError, match="`npti-export elicit --trait openness` writes them"):
        run_measure(work_with(chat_model(), TOKENIZER), TraitFiles(tmp_path, "openness"))


def test_statistics_of_another_measurement_are_not_taken(first: Identified, tmp_path: Path) -> None:
    """One file of the two exchanged: select refuses, identify measures again."""
    folder = tmp_path / "adapter"
    run(folder, seed=1)
    other = (folder / "statistics" / "openness_low.safetensors").read_bytes()
    run(folder)
    (folder / "statistics" / "openness_low.safetensors").write_bytes(other)
    with pytest.raises(NptiError, match=r"is not the file that openness\.json names; measure again"):
        select_into(folder, ["openness"], Method())
    run(folder)
    assert contents(folder) == contents(first.folder)


def test_transcripts_from_elsewhere_are_measured(first: Identified, tmp_path: Path) -> None:
    files = TraitFiles(tmp_path / "adapter", "openness")
    lines = (first.folder / "transcripts" / "openness.jsonl").read_bytes()
    files.transcripts.parent.mkdir(parents=True)
    files.transcripts.write_bytes(lines)
    measured = run_measure(work_with(chat_model(), TOKENIZER, 8), files)
    assert measured.curve == first.measurements["openness"].curve
    assert (measured.source.made_with, measured.source.seed) == ("", 0)
    statistics = "statistics/openness_high.safetensors"
    assert contents(tmp_path / "adapter")[statistics] == contents(first.folder)[statistics]


def test_what_a_kill_within_saving_leaves_is_put_right(first: Identified, tmp_path: Path) -> None:
    """The trait's file was renamed into its place, config.json was not, and the files beside their place lie about."""
    folder = tmp_path / "adapter"
    run(folder, seed=1)
    config = (folder / "config.json").read_bytes()
    run(folder)
    (folder / "config.json").write_bytes(config)
    (folder / ".new-left").mkdir()
    (folder / ".new-left" / "config.json").write_bytes(b"half")
    (folder / "statistics" / "openness.done.json").unlink()
    run(folder)
    assert contents(folder) == contents(first.folder)
    assert not (folder / ".new-left").exists()
    (folder / "openness.safetensors").write_bytes(b"broken")
    with pytest.raises(NptiError, match="damaged"):
        run(folder, "neuroticism")  # of another trait it is not put right


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = chat_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    run(tmp_path / "adapter", model=model)
    assert [type(module) for module in model.modules()] == modules
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    assert "generate" not in model.__dict__
