"""What is taken for a mixture of experts in a served model, by the names of a module's classes."""

from __future__ import annotations

import pytest

from npti_export.serving.vllm_sites import _EXPERTS


@pytest.mark.parametrize("classes", ["FusedMoE Module", "MoERunner Module", "RoutedExperts", "SharedExperts FusedMoE"])
def test_experts_are_known_by_their_classes(classes: str) -> None:
    assert _EXPERTS.search(classes)


@pytest.mark.parametrize("classes", ["Gemma4ForCausalLM Module MixtureOfExperts", "QwenNextMixtureOfExperts", "MLP"])
def test_a_model_that_may_have_experts_is_none_for_that(classes: str) -> None:
    assert not _EXPERTS.search(classes)
