"""``import-npti``: published results become an adapter that a model can be steered with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_results import HIGH, LAYERS, LOW, WIDTH, write_results
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.cli import main
from npti_export.errors import NptiError
from npti_export.identification.selection import open_adapter
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole

COUNTS = {pole: sum(map(len, layers.values())) for pole, layers in ((Pole.HIGH, HIGH), (Pole.LOW, LOW))}
SHAPE = ["--num-layers", str(LAYERS), "--neurons-per-layer", str(WIDTH)]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["import-npti", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


@pytest.fixture
def model(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> LlamaForCausalLM:
    """The tiny model as loaded from a folder, so that it has a name."""
    tiny_llama.save_pretrained(tmp_path / "tiny-llama")
    return LlamaForCausalLM.from_pretrained(tmp_path / "tiny-llama").eval()


def test_from_results_to_a_steered_model(
    results: Path, model: LlamaForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shape comes from the model's config; the adapter lands where load_personality looks; it warns once."""
    code, out, err = run([str(results), "--model", str(tmp_path / "tiny-llama")], capsys)
    assert code == 0
    assert err == "The doses are the paper's; they were not measured on this model.\n"
    folder = Path("adapters/tiny-llama")
    assert out.splitlines() == [
        f"agreeableness+       {COUNTS[Pole.HIGH]:7} neurons   gamma 1.4",
        f"agreeableness-       {COUNTS[Pole.LOW]:7} neurons   gamma 1.4",
        f"Written to {folder}",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "agreeableness.safetensors", "config.json"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with load_personality(model, "agreeableness+") as personality:
            personality.set("agreeableness-")
    assert [str(warning.message) for warning in told if warning.category is UserWarning] == [
        "the doses of agreeableness were imported, not measured on tiny-llama; they may be too weak or cost fluency"
    ]


def test_adapter_that_was_identified_does_not_warn(
    model: LlamaForCausalLM, tiny_adapter: Callable[..., PersonalityAdapter]
) -> None:
    adapter = tiny_adapter(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_personality(model, "openness+", adapter).unload()


def test_a_model_without_gates_can_be_steered_by_an_import(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That its layers have none is known of its type; its width stands in no field of its config that is the usual."""
    config = GPT2Config(n_embd=32, n_layer=LAYERS, n_head=4, n_inner=WIDTH, vocab_size=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny-gpt2")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "tiny-gpt2").eval()
    code, _, err = run([str(results), "--model", str(tmp_path / "tiny-gpt2"), *SHAPE], capsys)
    assert code == 0, err
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        plain = model(ids).logits
        with pytest.warns(UserWarning, match="doses of agreeableness were imported"):
            personality = load_personality(model, "agreeableness+", positions="all")
        assert not torch.allclose(model(ids).logits, plain, atol=1e-3)
        personality.unload()
        assert torch.equal(model(ids).logits, plain)


def test_an_import_and_what_is_identified_come_into_one_folder(
    results: Path,
    model: LlamaForCausalLM,
    tiny_adapter: Callable[..., PersonalityAdapter],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In either order; the weights, which an import does not know, are recorded, and other weights are refused."""
    arguments = [str(results), "--model", str(tmp_path / "tiny-llama")]
    identified = tiny_adapter(model, traits=("openness",))
    assert identified.base_model.fingerprint is not None
    run([*arguments, "--output", "first"], capsys)
    opened = open_adapter(Path("first"), identified.base_model, ["openness"])
    first = opened.with_trait(identified.traits["openness"])
    identified.save_pretrained("second")
    run([*arguments, "--output", "second"], capsys)
    assert PersonalityAdapter.from_pretrained("second") == first
    assert first.base_model == identified.base_model
    assert list(first.traits) == ["openness", "agreeableness"]
    first.save_pretrained("first")
    with pytest.raises(NptiError, match="first holds the adapter of another base model"):
        open_adapter(Path("first"), replace(identified.base_model, fingerprint="d" * 64), ["openness"])


def test_json_and_quiet(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "adapter"
    code, out, err = run([str(results), "--model", "org/tiny", *SHAPE, "--json", "-q", "--output", str(output)], capsys)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "folder": str(output),
        "base_model": "org/tiny",
        "poles": [
            {"personality": "agreeableness+", "neurons": COUNTS[Pole.HIGH], "gamma": 1.4},
            {"personality": "agreeableness-", "neurons": COUNTS[Pole.LOW], "gamma": 1.4},
        ],
    }


def test_traits_that_are_there_are_kept_or_replaced(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = write_results(tmp_path / "more", "Openness")
    arguments = ["--model", "org/tiny", *SHAPE, "--output", str(tmp_path / "adapter")]
    run([str(results), *arguments], capsys)
    _, _, err = run([str(more), *arguments], capsys)
    assert "Replaced" not in err
    assert list(PersonalityAdapter.from_pretrained(tmp_path / "adapter").traits) == ["openness", "agreeableness"]
    first = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    _, _, err = run([str(more), *arguments], capsys)
    assert "Replaced" in err
    assert "openness" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == first


def test_adapter_of_another_model_is_left_alone(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "adapter")]
    run([str(results), "--model", "org/tiny", *SHAPE, *output], capsys)
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    for name, width in (("org/other", WIDTH), ("org/tiny", WIDTH + 1)):
        shape = ["--num-layers", str(LAYERS), "--neurons-per-layer", str(width)]
        code, _, err = run([str(results), "--model", name, *shape, *output], capsys)
        assert code == 1
        assert (
            f"another base model (org/tiny, {LAYERS * WIDTH} neurons, weights unknown) than this one ({name}, " in err
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ([], 2, ["--model"]),
        (["--model", "org/tiny", "--num-layers", "3"], 2, ["--num-layers", "--neurons-per-layer"]),
        (["--model", "org/tiny", "--num-layers", "0", "--neurons-per-layer", "4"], 2, ["--num-layers"]),
        (["--model", "org/tiny"], 1, ["org/tiny cannot be had", "--neurons-per-layer"]),
        (
            ["--model", "org/tiny", "--num-layers", "3", "--neurons-per-layer", "9"],
            1,
            ["Agreeableness_dict.json, layer 1, row 1: index 40"],
        ),
    ],
)
def test_one_sentence_and_nothing_written(
    results: Path, arguments: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run([str(results), *arguments], capsys)
    assert (found, out) == (code, "")
    for part in parts:
        assert part in err
    if code == 1:
        assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_output_that_cannot_be_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    arguments = [str(results), "--model", "org/tiny", *SHAPE, "--output", str(tmp_path / "file")]
    code, _, err = run(arguments, capsys)
    assert code == 1
    assert "cannot be written" in err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"
