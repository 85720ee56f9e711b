"""Vision-language models: the language tower alone is steered, image tokens included where all positions are."""

from __future__ import annotations

import pytest
import torch
from equation_4 import steered_by_hooks
from torch import Tensor, nn
from vision_language import FAMILIES, llava, mllama

from npti_export import load_personality
from npti_export.errors import NptiError
from npti_export.steering.module import SteeredActivation
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole


def activations_of(model: nn.Module) -> dict[str, nn.Module]:
    """Those of the language tower's feed-forward blocks, by name."""
    towers = ("model.language_model.layers.", "model.text_model.layers.")
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(towers) and name.endswith((".mlp.act_fn", ".mlp.activation_fn"))
    }


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(family, id=family.__name__, marks=[] if family is llava else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_language_tower_alone_is_steered(tiny_adapter, build) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    language = activations_of(model)
    assert len(language) == 2
    assert [site.name for site in find_sites(model)] == list(language)
    adapter = tiny_adapter(model)

    def call() -> Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    plain = call()
    with steered_by_hooks(list(language.values()), adapter, "openness", Pole.HIGH):
        expected = call()
    with load_personality(model, "openness+", adapter, positions="all"):
        steered = {name for name, module in model.named_modules() if isinstance(module, SteeredActivation)}
        assert steered == set(language)
        assert torch.equal(call(), expected)
    assert torch.equal(call(), plain)
    assert not torch.equal(expected, plain)


@pytest.mark.slow
def test_layers_that_run_with_a_picture_only_are_refused() -> None:
    model, _ = mllama()
    with pytest.raises(NptiError, match=r"activation model\.language_model\.layers\.1\.mlp\.act_fn did not run"):
        find_sites(model.eval())
