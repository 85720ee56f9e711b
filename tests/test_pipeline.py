"""``identify`` from end to end on a tiny chat model: bytes, resuming, folders, and what it refuses."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.identification.elicit import read_transcripts
from npti_export.pipeline import HELD_BACK, Identified, identify, split_questions
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question, material_sha256

TOKENIZER = tiny_tokenizer()


def chat_model(seed: int = 0, name: str = "tests/tiny-chat") -> LlamaForCausalLM:
    """A tiny chat model whose answers are short: punctuation ends them."""
    model = tiny_chat_model(seed, context=48, name=name)
    model.generation_config.eos_token_id = [1, *TOKENIZER.convert_tokens_to_ids(list(string.punctuation))]
    return model


def questions(trait: str) -> list[Question]:
    return [Question(trait, f"{trait[:1].upper()}{at}?", facet=f"facet {at % 3}") for at in range(6 + HELD_BACK)]


def personas(trait: str) -> list[Persona]:
    return [Persona(trait, pole, f"{pole.value} {trait[:5]} {at}") for pole in Pole for at in range(3)]


def run(
    folder: Path, traits: str | list[str] = "openness", model: LlamaForCausalLM | None = None, **options: object
) -> Identified:
    return identify(
        model or chat_model(),
        TOKENIZER,
        traits,
        folder,
        **{"questions": questions, "personas": personas, "batch_size": 8, **options},  # type: ignore[arg-type]
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert set(files) == {"README.md", "config.json", "openness.safetensors", "transcripts/openness.jsonl"}
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
    assert found.split_half_reliability is not None
    assert -1.0 <= found.split_half_reliability <= 1.0
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
    ("name", "after", "kept"), [("answers", 1, 8), ("answers", 12, 12), ("measure", 1, 12), ("dose", 30, 12)]
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    first: Identified, tmp_path: Path, name: str, after: int, kept: int
) -> None:
    folder = tmp_path / "adapter"
    with interrupted(name, after) as stage, pytest.raises(KeyboardInterrupt):
        run(folder, stage=stage)
    assert not (folder / "config.json").exists()
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
    assert sorted(path.name for path in (folder / "transcripts").iterdir()) == ["openness.jsonl"]


def test_a_second_trait_keeps_the_first(first: Identified, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    run(folder)
    found = run(folder, "neuroticism")
    files = contents(folder)
    for name in ("openness.safetensors", "transcripts/openness.jsonl"):
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
    assert said == [
        "openness: the personas' answers can hardly be told apart (AUC 0.50, expected 0.7 or more), so the neurons "
        "found may mean little; a larger chat model plays them better."
    ]


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


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = chat_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    run(tmp_path / "adapter", model=model)
    assert [type(module) for module in model.modules()] == modules
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    assert "generate" not in model.__dict__
