"""A request's personality on its way through the front end: from name or field to the engine, or refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import LayerNeurons
from npti_export.errors import NptiError
from npti_export.serving.added import AddedPersonalities
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.settings import ServingSettings
from npti_export.serving.vllm_frontend import check_config, check_request, take_personality

NAMES = ["base", "a-lora"]


@dataclass
class Completion:
    """The fields of a completion request that the front end looks at."""

    model: str | None = "base"
    vllm_xargs: dict[str, object] | None = None
    use_beam_search: bool = False


@dataclass
class Tokenize:
    """A request that generates nothing."""

    model: str | None = "base"


@dataclass
class Generate:
    """A request that generates and has no place for a personality, such as vLLM's of tokens in and out."""

    model: str | None = "base"


@dataclass
class Sampling:
    """The field of vLLM's sampling parameters that carries a personality."""

    extra_args: dict[str, object] | None = field(default_factory=dict)


@pytest.fixture
def served(tiny_llama: LlamaForCausalLM, tiny_adapter) -> ServedPersonalities:
    return ServedPersonalities(tiny_adapter(tiny_llama))


@pytest.mark.parametrize(
    ("given", "model", "arguments"),
    [
        (Completion(), "base", None),
        (Completion(model=None), None, None),
        (Completion("base:openness+"), "base", {"personality": "openness+"}),
        (Completion("a-lora:neutral"), "a-lora", {"personality": "neutral"}),
        (Completion("base:openness+", {"session_id": "x"}), "base", {"session_id": "x", "personality": "openness+"}),
        (Completion("base:openness+", {"personality": "Openness + 1"}), "base", {"personality": "openness+"}),
        (Completion("another:openness+"), "another:openness+", None),
        (Completion("base", {"personality": "openness-2"}), "base", {"personality": "openness-2"}),
    ],
)
def test_a_name_hands_its_personality_to_the_engine(
    served: ServedPersonalities, given: Completion, model: str | None, arguments: dict[str, object] | None
) -> None:
    take_personality(served, given, NAMES)
    assert (given.model, given.vllm_xargs) == (model, arguments)


def test_a_name_goes_to_the_engine_as_what_it_stands_for(served: ServedPersonalities) -> None:
    """The engine's processes do not know names that were added while the server ran."""
    AddedPersonalities(served, 1).add("curious", "Openness + 1.20")
    for request in (Completion("base:curious"), Completion(vllm_xargs={"personality": "curious"})):
        take_personality(served, request, NAMES)
        assert (request.model, request.vllm_xargs) == ("base", {"personality": "openness+1.2"})


def test_requests_that_generate_nothing_may_use_the_name(served: ServedPersonalities) -> None:
    request = Tokenize("base:openness+")
    take_personality(served, request, NAMES)
    assert vars(request) == {"model": "base"}


def test_a_request_that_would_lose_what_its_name_says_is_refused(tiny_llama, tiny_adapter) -> None:
    calm = ServedPersonalities(tiny_adapter(tiny_llama), "neuroticism-")
    for name in ("base:openness+", "base:neutral"):
        with pytest.raises(NptiError, match="a Generate cannot ask for one behind the model's name"):
            take_personality(calm, Generate(name), NAMES)
    for name in ("base:neuroticism-", "base"):  # what it gets anyway
        request = Generate(name)
        take_personality(calm, request, NAMES)
        assert request.model == "base"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Completion("base:anger+"), "no trait 'anger'"),
        (Completion("base:"), "term ''"),
        (Completion("base", {"personality": "anger+"}), "no trait 'anger'"),
        (Completion("base", {"personality": 0}), "not int"),
        (Completion("base:openness+", {"personality": "openness-"}), "give one"),
        (Completion("base:openness+", use_beam_search=True), "beam search"),
        (Completion("base", {"personality": "openness+"}, use_beam_search=True), "beam search"),
    ],
)
def test_what_cannot_be_served_is_refused(served: ServedPersonalities, given: Completion, said: str) -> None:
    with pytest.raises(NptiError, match=said):
        take_personality(served, given, NAMES)


def test_beam_search_is_refused_under_a_default_and_not_when_neutral(tiny_llama, tiny_adapter) -> None:
    calm = ServedPersonalities(tiny_adapter(tiny_llama), "neuroticism-")
    with pytest.raises(NptiError, match="beam search"):
        take_personality(calm, Completion(use_beam_search=True), NAMES)
    take_personality(calm, Completion("base:neutral", use_beam_search=True), NAMES)


def test_the_engine_refuses_what_it_is_given_directly(served: ServedPersonalities) -> None:
    check_request(served, Sampling({"personality": "openness+"}), resumable=False)
    check_request(served, Sampling(None), resumable=True)
    check_request(served, object(), resumable=False)  # another task's parameters
    with pytest.raises(NptiError, match="no trait 'anger'"):
        check_request(served, Sampling({"personality": "anger+"}), resumable=False)
    with pytest.raises(NptiError, match="whose prompt grows"):
        check_request(served, Sampling({"personality": "openness+"}), resumable=True)


def test_an_adapter_of_a_mixture_is_refused_by_name(tiny_llama, tiny_adapter) -> None:
    adapter = tiny_adapter(tiny_llama)
    experts = (LayerNeurons(dense=0, experts=4, per_expert=16),) * 2
    mixture = replace(adapter.base_model, id="some-mixture", neurons_per_layer=experts)
    settings = ServingSettings("folder", PersonalityAdapter(mixture, {}), None)
    with pytest.raises(NptiError, match="some-mixture, which the adapter was made for, is a mixture of experts"):
        check_config(settings, object())


def test_a_width_that_stands_elsewhere_in_the_config_is_left_to_the_worker(tiny_llama, tiny_adapter) -> None:
    settings = ServingSettings("folder", tiny_adapter(tiny_llama), None)
    text = SimpleNamespace(num_hidden_layers=3, intermediate_size=96)
    config = SimpleNamespace(hf_text_config=text, hf_config=tiny_llama.config, model="tiny")
    with pytest.raises(NptiError, match="neurons_per_layer 144"):
        check_config(settings, config)
    text.shared_intermediate_size = 48  # Granite 4 without experts
    check_config(settings, config)
