"""The front end of vLLM: a request's personality is read and refused before it reaches the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from npti_export.adapter.base_model import BaseModel, LayerNeurons
from npti_export.adapter.find import id_of_model_name
from npti_export.errors import NptiError
from npti_export.serving.added import AddedPersonalities
from npti_export.serving.model_names import SEPARATOR, split_model_name
from npti_export.serving.personalities import REQUEST_FIELD, ServedPersonalities
from npti_export.serving.plugin import ADMIN_KEY_VARIABLE
from npti_export.serving.settings import ServingSettings
from npti_export.steering.positions import Positions

logger = logging.getLogger("vllm.npti_export")

OTHER_WIDTH = ("block_auto_adjust_ff_dim", "use_double_wide_mlp", "shared_intermediate_size")
"""What in a config says that layers have another width than its ``intermediate_size`` (LFM2, Gemma 4, Granite 4)."""

GENERATE_NOTHING = ("Tokenize", "Detokenize", "Derender")
"""How the names of requests begin that no personality makes a difference to."""

_http_wrapped = False


def wrap_front_end(settings: ServingSettings) -> None:
    """Lets the front end read personalities, in Python (``extra_args``) and over HTTP (``vllm_xargs``, model names).

    Args:
        settings: The server's.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    begin, process = InputProcessor.__init__, InputProcessor.process_inputs

    @wraps(begin)
    def begin_with_personalities(self: Any, vllm_config: Any, *arguments: Any, **keywords: Any) -> None:
        # The worker holds the adapter against the model itself; this is said before weights are loaded.
        check_config(settings, vllm_config.model_config)
        begin(self, vllm_config, *arguments, **keywords)
        self.npti_personalities = settings.personalities(vllm_config.model_config.dtype)
        wrap_http(self.npti_personalities, settings, vllm_config)
        logger.info(
            "npti-export is live: adapter %s with %s; requests that name none are %s.",
            settings.name,
            ", ".join(self.npti_personalities.poles),
            self.npti_personalities.default,
        )
        for sentence in self.npti_personalities.refused.values():
            logger.warning("npti-export: %s", sentence)

    @wraps(process)
    def process_with_personality(self: Any, request_id: str, prompt: Any, params: Any, *rest: Any, **named: Any) -> Any:
        check_request(self.npti_personalities, params, resumable=bool(named.get("resumable")))
        return process(self, request_id, prompt, params, *rest, **named)

    InputProcessor.__init__ = begin_with_personalities
    InputProcessor.process_inputs = process_with_personality


def check_config(settings: ServingSettings, model_config: Any) -> None:
    """Holds the adapter against what the model's config tells of its shape.

    Raises:
        NptiError: If it does not fit.
    """
    mine = settings.adapter.base_model
    if any(layer.experts for layer in mine.neurons_per_layer):
        raise NptiError(
            f"{mine.id}, which the adapter was made for, is a mixture of experts, whose fused kernels go round the "
            "edit in vLLM; dense models can be served there."
        )
    text = model_config.hf_text_config
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "intermediate_size", None)
    if not isinstance(layers, int) or not isinstance(width, int) or any(getattr(text, name, 0) for name in OTHER_WIDTH):
        return  # the worker counts the neurons themselves
    mine.check_fit(
        BaseModel(
            id=id_of_model_name(str(model_config.model)),
            revision=None,
            model_type=model_config.hf_config.model_type,
            num_layers=layers,
            neurons_per_layer=(LayerNeurons(dense=width),) * layers,
            activation=mine.activation,
            gated=mine.gated,
            fingerprint=None,
        )
    )


def check_request(served: ServedPersonalities, params: Any, resumable: bool) -> None:
    """Makes sure that a request's personality can be served, before anything is done for it.

    Args:
        served: The server's personalities.
        params: vLLM's ``SamplingParams``, or the parameters of another task, which is not steered.
        resumable: Whether the client will add to the prompt later, so that what was generated becomes prompt.

    Raises:
        NptiError: A ValueError, which the server answers with 400.
    """
    arguments = getattr(params, "extra_args", None) or {}
    served.check(arguments.get(REQUEST_FIELD))
    steering = served.steering(arguments, prompt_tokens=1) if hasattr(params, "extra_args") else None
    if resumable and steering is not None and steering.first > 0:
        raise NptiError(
            f"Personality {str(steering.spec)!r}: a request whose prompt grows can only be steered with positions "
            f"{Positions.ALL.value!r}; send each turn as a request, or ask for neutral."
        )


def open_endpoint(added: AddedPersonalities, key: str, vllm_config: Any) -> None:
    """Adds ``/personalities`` to the server that is about to be made.

    Args:
        added: What is listed and changed there.
        key: Who knows it may.
        vllm_config: The engine's.

    Raises:
        NptiError: If several processes take requests, of which one would know the names that are added.
    """
    from vllm.entrypoints.launchers import app as launcher

    from npti_export.serving.personalities_endpoint import personalities_router

    if vllm_config.parallel_config._api_process_count > 1:
        raise NptiError(f"{ADMIN_KEY_VARIABLE} is set, and names are added with --api-server-count 1 only.")
    original = launcher.attach_endpoint_plugins

    @wraps(original)
    def attach_endpoint_plugins(app: Any, *arguments: Any, **keywords: Any) -> None:
        original(app, *arguments, **keywords)
        app.include_router(personalities_router(added, key))

    launcher.attach_endpoint_plugins = attach_endpoint_plugins


def wrap_http(served: ServedPersonalities, settings: ServingSettings, vllm_config: Any) -> None:
    """Lets requests over HTTP name the personality in ``vllm_xargs`` or behind the model's name.

    Args:
        served: The server's personalities.
        settings: The server's.
        vllm_config: The engine's.
    """
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.engine.serving import BaseServing

    global _http_wrapped
    if _http_wrapped:
        return
    _http_wrapped = True
    original = BaseServing._check_model

    @wraps(original)
    async def check_model(self: Any, request: Any) -> Any:
        # Here rather than where the engine takes the request: a stream has been answered with 200 by then.
        try:
            names = [*(model.name for model in self.models.base_model_paths), *self.models.lora_requests]
            take_personality(served, request, names)
        except NptiError as error:
            return self.create_error_response(error)
        return await original(self, request)

    BaseServing._check_model = check_model
    if settings.admin_key is not None:
        open_endpoint(AddedPersonalities(served, settings.slots), settings.admin_key, vllm_config)
    if served.presets or settings.admin_key is not None:
        OpenAIServingModels.show_available_models = listing_presets(served, OpenAIServingModels.show_available_models)


def listing_presets(served: ServedPersonalities, original: Callable[..., Any]) -> Callable[..., Any]:
    """``/v1/models`` that lists every preset as a model, after the models that there are.

    Args:
        served: The server's personalities.
        original: Lists the models.
    """

    @wraps(original)
    async def show_available_models(self: Any) -> Any:
        models = await original(self)
        models.data += [
            base.model_copy(update={"id": f"{base.id}{SEPARATOR}{name}", "parent": base.id})
            for base in list(models.data)
            for name in served.presets
        ]
        return models

    return show_available_models


def take_personality(served: ServedPersonalities, request: Any, names: list[str]) -> None:
    """Moves the personality in a request's model name to its ``vllm_xargs``, and makes sure that it can be served.

    Args:
        served: The server's personalities.
        request: A request of the OpenAI interface, as vLLM has read it.
        names: What the models are called.

    Raises:
        NptiError: If it cannot, if the name and ``vllm_xargs`` say different things, or if this kind of request has no
            place for what the name says.
    """
    named = None
    if request.model:
        request.model, named = split_model_name(request.model, names)
    arguments = dict(getattr(request, "vllm_xargs", None) or {})
    asked = arguments.get(REQUEST_FIELD)
    spec = served.check(named if asked is None else asked)
    if named is not None and asked is not None and served.check(named) != spec:
        raise NptiError(
            f"The model's name asks for the personality {named!r} and {REQUEST_FIELD} for {asked!r}; give one."
        )
    kind, has_place = type(request).__name__, hasattr(request, "vllm_xargs")
    if named is not None and spec != served.default and not has_place and not kind.startswith(GENERATE_NOTHING):
        raise NptiError(
            f"Personality {str(spec)!r}: a {kind} cannot ask for one behind the model's name, so nothing would come of "
            "it; use chat or text completions."
        )
    text = asked if named is None else named
    if text is not None and has_place:
        # Only the front end knows the names that were added while it ran.
        text = str(spec) if text in served.presets else text
        request.vllm_xargs = {**arguments, REQUEST_FIELD: text}
    if getattr(request, "use_beam_search", False):
        effective = served.default if named is None and asked is None else spec
        if not effective.is_neutral:
            raise NptiError(
                f"Personality {str(effective)!r}: beam search feeds what it generated as a prompt, so it cannot be "
                "steered; sample, or ask for neutral."
            )
