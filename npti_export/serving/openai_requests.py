"""What clients send: the requests of the OpenAI interface, read strictly.

A field that would change the answer and is not served is refused, and so is one that is not known: a personality that
was misspelled must not be left out silently. Fields that only tell who is asking are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import GenerationConfig

from npti_export.errors import NptiError
from npti_export.serving.model_names import split_model_name
from npti_export.serving.personalities import REQUEST_FIELD, ServedPersonalities
from npti_export.serving.sampling import Sampling
from npti_export.traits import PersonalitySpec

MAX_CHOICES = 128
"""Answers to one request, as in the OpenAI interface; how many there may be at all is the server's own limit."""
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
"""As in the OpenAI interface; a chat answer may be as long as the context leaves."""

_IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
_ONLY: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "use_beam_search": (False,),
}
"""Fields that this server does not serve, with the values that ask for nothing (None always does)."""

_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Token = Annotated[int, Field(ge=0)]


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, max_length=1024)
    personality: Any = None
    vllm_xargs: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = Field(None, gt=0.0, le=2.0)
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name, nothing in _ONLY.items():
            if name in fields and fields[name] is not None and fields[name] not in nothing:
                raise ValueError(f"{name} is not served by this server; leave it out")
        return {name: value for name, value in fields.items() if name not in _IGNORED and name not in _ONLY}

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, of_model: GenerationConfig) -> Sampling:
        """How tokens are chosen; what the request leaves open is the model's own choice, as in vLLM.

        Args:
            of_model: The model's generation config.
        """

        def first(*values: Any, default: Any) -> Any:
            return next((value for value in values if value is not None), default)

        return Sampling(
            temperature=first(self.temperature, of_model.temperature, default=1.0),
            top_p=first(self.top_p, of_model.top_p, default=1.0),
            top_k=max(0, first(self.top_k, of_model.top_k, default=0)),
            repetition_penalty=first(self.repetition_penalty, of_model.repetition_penalty, default=1.0),
            seed=self.seed,
        )


class TextPart(BaseModel):
    """A part of a message; of the kinds there are, only text is served."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat. Fields that a client sends back from an earlier answer are ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def for_template(self) -> dict[str, str]:
        """As chat templates want it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TemplateOptions(BaseModel):
    """What a chat template is told beside the messages."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None


class ChatRequest(_Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def most_tokens(self) -> int | None:
        """The largest number of tokens; None for as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens are told with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """``POST /v1/completions``."""

    prompt: str | list[_Token] | list[str] | list[list[_Token]]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more prompts, text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [token for token in self.prompt if isinstance(token, int)]
        return [tokens] if tokens else [one for one in self.prompt if not isinstance(one, int)]

    @property
    def most_tokens(self) -> int | None:
        """The largest number of tokens."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens are told with each token; None for no log-probabilities."""
        return self.logprobs


class UnknownModelError(NptiError):
    """A request named a model that is not served here."""


def personality_of(
    served: ServedPersonalities,
    name: str,
    model: str | None,
    personality: Any = None,
    vllm_xargs: Mapping[str, Any] = MappingProxyType({}),
) -> PersonalitySpec:
    """Which personality a request asks for: in a field, in ``vllm_xargs`` or behind the model's name.

    Args:
        served: The server's personalities.
        name: What the server calls its model.
        model: What the request calls it.
        personality: Its field of that name.
        vllm_xargs: Its field of that name, as the vLLM plugin reads it.

    Raises:
        UnknownModelError: If it names another model.
        NptiError: If there is no such personality, or two places name different ones.
    """
    asked: dict[str, Any] = {}
    if model:
        base, named = split_model_name(model, [name])
        if base != name:
            raise UnknownModelError(f"The model {model!r} is not served here; {name!r} is.")
        asked["the model's name"] = named
    asked[f"vllm_xargs.{REQUEST_FIELD}"] = vllm_xargs.get(REQUEST_FIELD)
    asked[REQUEST_FIELD] = personality
    if unknown := [field for field in vllm_xargs if field != REQUEST_FIELD]:
        raise NptiError(f"vllm_xargs: {', '.join(map(repr, unknown))} is not known; {REQUEST_FIELD!r} is.")
    specs = {place: served.check(value) for place, value in asked.items() if value is not None}
    if len(set(specs.values())) > 1:
        said = " and ".join(f"{place} for {str(spec)!r}" for place, spec in specs.items())
        raise NptiError(f"The request asks for different personalities: {said}; give one.")
    return next(iter(specs.values()), served.default)
