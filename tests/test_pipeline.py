"""``identify`` from end to end on a tiny chat model: bytes, resuming, folders, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from identify_process import TOKENIZER, chat_model, contents, many_questions, personas, questions, run
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.identification.elicit import read_transcripts
from npti_export.identification.files import TraitFiles, digest
from npti_export.identification.fit import fit_way
from npti_export.identification.questions import BLOCK_QUESTIONS
from npti_export.identification.selection import read_measured, run_select, select_into
from npti_export.identification.selector import Selector
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


def dose_answers(folder: Path, trait: str = "openness") -> int:
    """How many answers finding the dose took, from what is told of it: the unsteered ones and those of each dose."""
    told = json.loads((folder / "statistics" / f"{trait}.done.json").read_bytes())["poles"]
    return (1 + sum(len(way["doses"]) for pole in told.values() for way in pole["tried"])) * HELD_BACK


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
        assert of_pole.method.name == "npti"
        assert of_pole.gamma in {point.gamma for point in of_pole.dose_curve}
        told = json.loads(files["statistics/openness.done.json"])["poles"][pole]
        assert told["reason"] == first.reasons["openness"][pole]
        ways = {way["way"] for way in told["tried"]}
        assert ways == {"npti, δ ≥ 0.1, caps opposite", "npti, δ ≥ 0.1, caps none", "npti, δ ≥ 0.2, caps none"}
        curve = {point.gamma: (point.effect, point.fluency) for point in of_pole.dose_curve}
        taken = {dose["gamma"]: (dose["effect"][0], dose["fluency"][0]) for dose in told["tried"][0]["doses"]}
        assert curve == taken
    statistics, measurement, base_model = read_measured(TraitFiles(first.folder, "openness"))
    assert base_model == adapter.base_model
    assert measurement == first.measurements["openness"]
    [point] = measurement.curve
    assert (point.questions, point.split_half) == (6, found.split_half_reliability)
    for pole, of_pole in record.poles.items():
        if of_pole.method.min_difference == 0.1:  # the curve is of the paper's thresholds
            assert (point.overlap[pole], point.margin[pole]) == (
                found.selection_overlap[pole],
                found.delta_margin[pole],
            )
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
    assert sum(rows) == 12 - kept + dose_answers(folder)


def test_answers_of_other_weights_are_not_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with interrupted("answers", 5) as stage, pytest.raises(KeyboardInterrupt):
        run(folder, stage=stage)
    other = chat_model(seed=1)
    with generating(other) as rows:
        run(folder, model=other)
    assert sum(rows) == 12 + dose_answers(folder)
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
            "There are 24 different questions; at least 35 are needed",
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
    for part, least in ((asked, 4), (held_back, 10)):
        assert all(sum(question.facet == facet for question in part) >= least for facet in ("a", "b", "c"))
    assert split_questions(many, 12, seed=0) == (asked, held_back)
    assert split_questions(many, 12, seed=1) != (asked, held_back)
    assert [len(part) for part in split_questions(many, 1000, seed=0)] == [60, 30]


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
    assert sum(rows) == 2 * stops + dose_answers(tmp_path / "stopped")
    early = run(tmp_path / "early", questions=many_questions, reliability=0.0)
    assert early.measurements["openness"].curve == curve[:3]  # not before 30 questions
    transcripts = read_transcripts(tmp_path / "whole" / "transcripts" / "openness.jsonl")
    assert read_transcripts(tmp_path / "early" / "transcripts" / "openness.jsonl") == transcripts[:72]


def test_more_questions_take_up_the_answers_that_are_there(tmp_path: Path) -> None:
    run(tmp_path / "adapter", questions=many_questions, reliability=0.0)
    model = chat_model()
    with generating(model) as rows:
        run(tmp_path / "adapter", model=model, questions=many_questions, reliability=1.0)
    assert sum(rows) == 2 * 24 + dose_answers(tmp_path / "adapter")
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
    adapter = select_into(folder, ["openness"], Selector())
    expected = contents(whole.folder)
    for name, data in contents(folder).items():
        if name.startswith(("transcripts", "statistics")):
            assert data == expected[name], name
    for pole, record in adapter.traits["openness"].poles.items():
        calibrated = whole.adapter.traits["openness"].poles[pole]
        assert (record.calibrated, record.gamma, record.dose_curve) == (False, 1.4, ())
        select_into(folder, ["openness"], Selector(min_difference=calibrated.method.min_difference))
        same = PersonalityAdapter.from_pretrained(folder).traits["openness"]
        for array in ("layer", "index", "target", "delta", "mean_difference", "effect_size"):
            np.testing.assert_array_equal(getattr(same.poles[pole].neurons, array), getattr(calibrated.neurons, array))
        made, found = same.identification, whole.adapter.traits["openness"].identification
        assert made.selection_overlap[pole] == found.selection_overlap[pole]
        assert replace(made, selection_overlap=None, delta_margin=None) == replace(
            found, selection_overlap=None, delta_margin=None
        )
    model = chat_model()
    with generating(model) as rows:
        run(folder, model=model, questions=many_questions, reliability=1.0)
    assert sum(rows) == dose_answers(folder)  # only the dose was left to find
    assert contents(folder) == expected


def test_select_takes_other_thresholds(first: Identified, tmp_path: Path) -> None:
    run(tmp_path / "adapter")
    chosen = {}
    for min_difference in (0.02, 0.1, 0.4):
        adapter = select_into(tmp_path / "adapter", ["openness"], Selector(min_difference=min_difference))
        record = adapter.traits["openness"].poles[Pole.HIGH]
        assert record.method.min_difference == min_difference
        assert (record.neurons.delta >= np.float32(min_difference)).all() or len(record.neurons) == 1
        chosen[min_difference] = len(record.neurons)
    assert chosen[0.02] > chosen[0.1] > chosen[0.4] > 0
    assert PersonalityAdapter.from_pretrained(tmp_path / "adapter") == adapter
    run(tmp_path / "adapter")  # and back: the dose is found again
    assert contents(tmp_path / "adapter") == contents(first.folder)


def test_the_dose_may_be_left_for_later(first: Identified, tmp_path: Path) -> None:
    """Nothing held back is asked, and answers and statistics are those of a run that finds the dose."""
    folder = tmp_path / "adapter"
    with generating(model := chat_model()) as rows:
        found = run(folder, model=model, calibrated=False)
    assert sum(rows) == 12
    files, whole = contents(folder), contents(first.folder)
    assert set(files) == set(whole)
    for name, data in files.items():
        if name.startswith(("transcripts", "statistics")) and not name.endswith("done.json"):
            assert data == whole[name], name
    assert b"1.4 (not calibrated)" in files["README.md"]
    read_back = PersonalityAdapter.from_pretrained(folder)
    assert read_back == found.adapter == select_into(tmp_path / "adapter", ["openness"], Selector())
    for pole, record in read_back.traits["openness"].poles.items():
        assert (record.calibrated, record.gamma, record.caps, record.dose_curve) == (False, 1.4, "opposite", ())
        assert found.reasons["openness"][pole].startswith("the dose was not measured; γ 1.4 is the paper's, and `npti")
        with load_personality(chat_model(), f"openness{pole.sign}", folder):
            pass
    with generating(model) as rows:
        again = run(folder, model=model, calibrated=False)
    assert (contents(folder), rows, again.reasons) == (files, [], found.reasons)


def test_the_dose_is_found_later_and_left_again(first: Identified, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    run(folder, calibrated=False)
    uncalibrated = contents(folder)
    with generating(model := chat_model()) as rows:
        found = run(folder, model=model)
    assert sum(rows) == dose_answers(folder)  # none in character
    assert contents(folder) == contents(first.folder)
    assert found.reasons == first.reasons
    with generating(model) as rows:
        run(folder, model=model, calibrated=False)
    assert rows == []
    assert contents(folder) == uncalibrated


def test_a_mark_that_is_not_what_the_run_left_is_put_right(tmp_path: Path) -> None:
    """As if the very γ that stands there had been found by calibrate: only config.json tells the two apart."""
    folder = tmp_path / "adapter"
    left = run(folder, calibrated=False).adapter
    before = contents(folder)
    trait = left.traits["openness"]
    marked = {pole: replace(record, calibrated=True) for pole, record in trait.poles.items()}
    left.with_trait(replace(trait, poles=marked)).save_pretrained(folder)
    assert contents(folder)["openness.safetensors"] == before["openness.safetensors"]
    assert contents(folder) != before
    run(folder, calibrated=False)
    assert contents(folder) == before


def test_vectors_are_fitted_where_the_dose_is_left(first: Identified, tmp_path: Path) -> None:
    """They need no dose; at γ 1 they are what calibration starts from, and no more is fitted when all is there."""
    selector = Selector("fitted")
    found = run(tmp_path / "adapter", selector=selector, calibrated=False)
    work = work_with(chat_model(), TOKENIZER, 8)
    files = TraitFiles(first.folder, "openness")
    statistics, measurement, _ = read_measured(files)
    start = run_select("openness", statistics, measurement, selector)
    expected = fit_way(work.model, TOKENIZER, start, read_transcripts(files.transcripts), 8)
    assert found.adapter.traits["openness"] == expected
    for pole, record in expected.poles.items():
        assert (record.method.name, record.gamma, record.calibrated) == ("fitted", 1.0, False)
        assert not np.array_equal(record.residual.vector, start.poles[pole].residual.vector)
        assert found.reasons["openness"][pole].startswith("the dose was not measured; γ 1 is what fitted starts from, ")
    before = contents(tmp_path / "adapter")
    with patch("npti_export.pipeline.fit_ways", side_effect=AssertionError("fitted again")):
        run(tmp_path / "adapter", selector=selector, calibrated=False)
    assert contents(tmp_path / "adapter") == before


def test_given_answers_need_no_question_held_back_where_the_dose_is_left(first: Identified, tmp_path: Path) -> None:
    given = first.folder / "transcripts" / "openness.jsonl"
    options = {"transcripts": given, "questions": lambda _trait: [], "personas": None}
    with generating(model := chat_model()) as rows:
        found = run(tmp_path / "adapter", model=model, calibrated=False, **options)
    assert rows == []
    assert found.measurements["openness"].transcripts == 12
    with pytest.raises(NptiError, match="leave 0 questions unanswered, and 30 are needed to find the dose"):
        run(tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()


def test_auto_needs_the_dose(tmp_path: Path) -> None:
    for options in ({}, {"transcripts": tmp_path / "nowhere.jsonl"}):
        message = "The method auto is chosen by measuring doses, which --no-calibrate leaves out; leave that out, or "
        refused(tmp_path / "adapter", message, selector=Selector("auto"), calibrated=False, **options)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.slow
def test_every_method_is_selected_calibrated_and_steers(first: Identified, tmp_path: Path) -> None:
    """From the statistics that are there, without a new answer in character; the same bytes twice."""
    folder = tmp_path / "adapter"
    run(folder)
    expected = {"mean-shift": (36, 72), "residual": None, "hybrid": (36,), "fitted": None}  # a quarter or half of 144
    for method, counts in expected.items():
        if method != "fitted":  # which select refuses
            for record in select_into(folder, ["openness"], Selector(method)).traits["openness"].poles.values():
                made = (record.method.name, record.calibrated, record.gamma, record.caps)
                assert made == (method, False, 1.0, "none")
                assert counts is None or len(record.neurons) == counts[0]
        with generating(model := chat_model()) as rows:
            found = run(folder, model=model, selector=Selector(method))
        assert sum(rows) >= dose_answers(folder)  # and what was asked of ways of which another was better
        for pole, record in found.adapter.traits["openness"].poles.items():
            assert record.calibrated
            assert record.method.name == method
            assert counts is None or len(record.neurons) in counts
            assert (record.residual is not None) == (method != "mean-shift")
            assert found.reasons["openness"][pole].startswith(method)
            with load_personality(chat_model(), f"openness{pole.sign}", folder):
                pass
        before = contents(folder)
        with generating(model) as rows:
            again = run(folder, model=model, selector=Selector(method))
        assert (contents(folder), rows, again.reasons) == (before, [], found.reasons)
    run(folder)
    assert contents(folder) == contents(first.folder)


@pytest.mark.slow
def test_auto_tries_every_method_and_takes_for_each_pole_its_own(first: Identified, tmp_path: Path) -> None:
    found = run(tmp_path / "adapter", selector=Selector("auto"))
    told = json.loads((tmp_path / "adapter" / "statistics" / "openness.done.json").read_bytes())["poles"]
    for pole, record in found.adapter.traits["openness"].poles.items():
        ways = [way["way"] for way in told[pole]["tried"]]
        kinds = sorted(way.split()[0].strip(",") for way in ways)
        assert kinds == ["fitted", "hybrid", "mean-shift", *["npti"] * 3, "residual"]
        assert ways[0].split()[0].strip(",") == record.method.name
        affordable = [
            dose["effect"][0] for way in told[pole]["tried"] for dose in way["doses"] if dose["fluency"][2] <= 1.5
        ]
        assert affordable
        assert record.caps == "opposite" or max(affordable) >= record.dose_curve[0].effect
    run(tmp_path / "again", selector=Selector("auto"))
    assert contents(tmp_path / "again") == contents(tmp_path / "adapter")


def test_what_needs_the_model_is_not_for_select(first: Identified) -> None:
    before = contents(first.folder)
    for method in ("auto", "fitted"):
        with pytest.raises(NptiError, match=f"The method {method} is found by running the model, which select does"):
            select_into(first.folder, ["openness"], Selector(method))
    assert contents(first.folder) == before


def test_layers_that_the_model_has_not_are_refused_before_any_work(tmp_path: Path) -> None:
    refused(tmp_path / "adapter", "--layers is 1-3; the model has the layers 0 to 2", selector=Selector(layers=(1, 3)))
    assert not (tmp_path / "adapter").exists()


def test_statistics_of_before_the_residual_stream_do_for_npti_and_are_measured_again(
    first: Identified, tmp_path: Path
) -> None:
    """As an earlier release wrote them: select goes on from them, identify measures again without a new answer."""
    folder = tmp_path / "adapter"
    run(folder)
    files = TraitFiles(folder, "openness")
    measurement = json.loads(files.measurement.read_bytes())
    for pole in Pole:
        path = files.statistics(pole)
        with safe_open(path, framework="numpy") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        del tensors["stream"]
        save_file(tensors, path, metadata=metadata)
        measurement["statistics_sha256"][pole] = hashlib.sha256(path.read_bytes()).hexdigest()
    source = measurement["source"]["transcripts_sha256"]
    measurement["measured_with"] = digest(work_with(chat_model(), TOKENIZER, 8).decides, source)
    files.measurement.write_text(json.dumps(measurement))
    assert len(select_into(folder, ["openness"], Selector()).traits["openness"].poles[Pole.HIGH].neurons)
    with pytest.raises(NptiError, match="The statistics hold no residual stream, which the method residual"):
        select_into(folder, ["openness"], Selector("residual"))
    with generating(model := chat_model()) as rows:
        run(folder, model=model)
    assert sum(rows) == dose_answers(folder)
    assert contents(folder) == contents(first.folder)


def test_select_without_statistics_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match=r"statistics/openness\.json is not there; `npti-export measure` writes it"):
        select_into(tmp_path, ["openness"], Selector())
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
        select_into(folder, ["openness"], Selector())
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
