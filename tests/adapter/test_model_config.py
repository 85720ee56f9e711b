"""The shape of a model from its config, or from two numbers where that cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import DENSE, Family, build
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig

from npti_export.adapter.model_config import base_model_from_config
from npti_export.errors import NptiError
from npti_export.steering.sites import describe_base_model, find_sites


def saved(config: Any, folder: Path, **changed: Any) -> str:
    config.save_pretrained(folder)
    if changed:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changed), encoding="utf-8")
    return str(folder)


def test_shape_is_that_of_the_running_model(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    """So that an imported adapter fits the model that it is loaded onto."""
    tiny_llama.save_pretrained(tmp_path / "tiny")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny")
    running = describe_base_model(model, find_sites(model))
    described = base_model_from_config(str(tmp_path / "tiny"))
    for what in ("id", "model_type", "num_layers", "neurons_per_layer", "activation", "gated", "num_neurons"):
        assert getattr(described, what) == getattr(running, what)
    assert described.fingerprint is None
    assert running.check_fit(described) is None


@pytest.mark.parametrize(
    "family", [pytest.param(family, id=family.name, marks=[] if family.fast else pytest.mark.slow) for family in DENSE]
)
def test_families_are_described_as_they_run(tmp_path: Path, family: Family) -> None:
    """Whether layers are gated stands in no config; an adapter of which it is said wrongly would fit no model."""
    model: Any = build(family)
    model.config.save_pretrained(tmp_path)
    described, running = base_model_from_config(str(tmp_path)), describe_base_model(model, find_sites(model))
    assert described.gated == running.gated == (family.wiring != "plain")
    assert (described.model_type, described.num_layers) == (running.model_type, running.num_layers)
    assert described.activation == running.activation


def test_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    from transformers import LlavaConfig

    text = LlamaConfig(num_hidden_layers=5, intermediate_size=60, hidden_act="gelu")
    described = base_model_from_config(saved(LlavaConfig(text_config=text), tmp_path))
    assert (described.model_type, described.num_layers, described.num_neurons) == ("llava", 5, 300)
    assert described.activation == "gelu"


def test_two_numbers_do_where_there_is_no_config(tmp_path: Path) -> None:
    described = base_model_from_config("org/name", num_layers=2, neurons_per_layer=7)
    assert (described.id, described.model_type, described.activation) == ("org/name", "unknown", "unknown")
    assert described.num_neurons == 14
    llama = base_model_from_config(saved(LlamaConfig(num_hidden_layers=2, intermediate_size=7), tmp_path))
    assert described.check_fit(llama) is None
    other = base_model_from_config("org/other", num_layers=2, neurons_per_layer=8)
    with pytest.raises(NptiError, match="does not fit org/other"):
        described.check_fit(other)


def test_two_numbers_complete_a_config_that_does_not_say(tmp_path: Path) -> None:
    folder = saved(GPT2Config(n_layer=2), tmp_path)
    with pytest.raises(NptiError, match=r"does not say how many neurons .* give --num-layers and --neurons-per-layer"):
        base_model_from_config(folder)
    described = base_model_from_config(folder, num_layers=2, neurons_per_layer=3072)
    assert (described.model_type, described.activation, described.num_neurons) == ("gpt2", "gelu_new", 6144)


@pytest.mark.parametrize(
    ("config", "changed", "given", "message"),
    [
        (LlamaConfig(num_hidden_layers=2), {}, (3, 11008), "says 2 layers of 11008 neurons, not 3 of 11008"),
        (LlamaConfig(), {}, (32, None), "Give both"),
        (LlamaConfig(), {"num_hidden_layers": 10**9}, (None, None), "num_hidden_layers 1000000000"),
        (LlamaConfig(), {"num_hidden_layers": "many"}, (None, None), "cannot be had .*num_hidden_layers"),
        (LlamaConfig(), {"model_type": "homegrown"}, (None, None), "cannot be had .*homegrown"),
        (
            LlamaConfig(),
            {"model_type": "homegrown", "auto_map": {"AutoConfig": "code.Config"}},
            (None, None),
            "cannot be had .*custom code",
        ),
        (MixtralConfig(num_hidden_layers=2), {}, (None, None), "is a mixture of experts"),
    ],
)
def test_what_cannot_be_taken(
    tmp_path: Path, config: Any, changed: dict[str, Any], given: tuple[int | None, int | None], message: str
) -> None:
    with pytest.raises(NptiError, match=message) as refused:
        base_model_from_config(saved(config, tmp_path, **changed), *given)
    assert "\n" not in str(refused.value)


def test_model_that_is_nowhere() -> None:
    with pytest.raises(NptiError, match=r"config of org/nowhere cannot be had .*; give --num-layers and --neurons-per"):
        base_model_from_config("org/nowhere")
