"""The tables' place in a running model: put in, told of every forward and every ``generate``, proved, taken out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from threading import Lock, get_ident
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from npti_export.errors import NptiError
from npti_export.steering.compiled import Handed
from npti_export.steering.dense import SteeredOutput
from npti_export.steering.dial import InForce
from npti_export.steering.experts import expert_steering
from npti_export.steering.module import SteeredActivation, check_unsteered
from npti_export.steering.override import Override
from npti_export.steering.positions import (
    Positions,
    TokenSteering,
    answer_slots,
    check_place,
    check_rows,
    first_steered,
    forward_span,
    generate_call_of,
    scored_slots,
    token_slots,
)
from npti_export.steering.running import RunningForward, RunningGenerate
from npti_export.steering.sites import Site, decoder_of, one_token_forward
from npti_export.steering.tables import SteeringTables

_PUTTING_IN = Lock()
"""Held by the thread that puts tables into a model: two may be loading the same one."""


class Installation:
    """The tables in a model. What runs now is kept by thread and task, so that they do not disturb each other.

    Args:
        model: The model.
        sites: Its activations.
        tables: One for each of them.
        in_force: Gives the personalities in force in the thread or task that asks.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        tables: Sequence[SteeringTables],
        in_force: Callable[[], InForce],
    ) -> None:
        # The hooks are on the module that holds the layers, so that no call of an inner module goes round them.
        decoder = decoder_of(model)
        self._signature = inspect.signature(decoder.forward)
        self._model = model
        self._in_force = in_force
        self._tables = tables
        self._forward: ContextVar[RunningForward | None] = ContextVar("npti_forward", default=None)
        self._generate: ContextVar[RunningGenerate | None] = ContextVar("npti_generate", default=None)
        self._scored: ContextVar[tuple[int, ...] | None] = ContextVar("npti_scored", default=None)
        self._handed = Handed()
        self._warned = False
        self._originals: list[tuple[Site, nn.Module]] = []
        self._outputs: list[SteeredOutput] = []
        self._hooks: list[RemovableHandle] = []
        self._overrides: list[Override] = []
        try:
            with _PUTTING_IN:
                check_unsteered(model)
                self._put_in(decoder, sites, tables)
        except BaseException:
            self.remove()
            raise

    def _put_in(self, decoder: nn.Module, sites: Sequence[Site], tables: Sequence[SteeringTables]) -> None:
        for site, own in zip(sites, tables, strict=True):
            original = site.activation
            if site.experts is None:
                steered = SteeredActivation(original, own, self.steering_for, self._handed)
            else:  # compiled or not, what the experts were called with has to be asked for
                steered = SteeredActivation(original, own, partial(expert_steering, site.experts, self.steering_for))
            self._originals.append((site, original))  # first, so that whatever interrupts this, it is put back
            site.put(steered)
        for own in tables:
            if own.output is not None:
                self._outputs.append(SteeredOutput(own.output, own, self._steering_for_output, self._handed))
        self._hooks.append(decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._hooks.append(decoder.register_forward_hook(self._after_forward, always_call=True))
        # A wrapper hands `generate` on to the module within: each records, and the innermost has the last word.
        for module in self._model.modules():
            if not hasattr(module, "generate"):
                continue
            self._override(module, "generate", self._recording)
            if hasattr(module, "prepare_inputs_for_generation"):
                self._override(module, "prepare_inputs_for_generation", self._recording_ids)
            if hasattr(module, "init_continuous_batching"):
                self._override(module, "init_continuous_batching", _refusing)

    def _override(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        self._overrides.append(Override(module, name, around(getattr(module, name))))

    def remove(self) -> None:
        """Puts the very objects back that were there."""
        for output in self._outputs:
            output.remove()
        for site, original in self._originals:
            site.put_back(original)
        for hook in self._hooks:
            hook.remove()
        for override in reversed(self._overrides):
            override.remove()

    def prove(self) -> None:
        """One token through the installed modules; each must be called, or steering would silently do nothing."""
        announced: dict[str, bool] = {}

        here = get_ident()  # another thread may be in the middle of a forward

        def saw(name: str) -> Callable[..., None]:
            return lambda *_: announced.update({name: self._forward.get() is not None} if get_ident() == here else {})

        announcing = [(f"activation {site.name}", site.activation) for site, _ in self._originals]
        announcing += [(f"module {output.place.name}", output.place.module) for output in self._outputs]
        hooks = [module.register_forward_hook(saw(name)) for name, module in announcing]
        try:
            one_token_forward(self._model)
        finally:
            for hook in hooks:
                hook.remove()
        for name, _ in announcing:
            if name not in announced:
                raise NptiError(f"The {name} was replaced but not called; the model goes round it.")
            if not announced[name]:
                raise NptiError(f"The {name} runs without a call of the module that holds its layers.")

    @contextmanager
    def scoring(self, prompt_lengths: Sequence[int]) -> Iterator[None]:
        """Plain forwards of this thread or task score what stands behind prompts of these lengths, one a row."""
        token = self._scored.set(tuple(prompt_lengths))
        try:
            yield
        finally:
            self._scored.reset(token)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def steering_for(self, gate: Tensor) -> TokenSteering | None:
        """Which slot each token of the running forward has, as an activation asks it; not baked in by a compiler."""
        if forward := self._forward.get():
            forward.activations.append(None)
        return self._steering_of(gate)

    def _steering_of(self, values: Tensor) -> TokenSteering | None:
        forward = self._forward.get()
        if forward is None:  # a layer on its own, as gradient checkpointing calls it: a plain forward of its tokens
            if values.ndim > 2:
                return self._decide(int(values.shape[0]), 0, int(values.shape[1]), None)
            if len(self._in_force().selection.slots) > 1:
                raise NptiError(
                    "A layer was called on its own, on tokens whose rows cannot be told; set one personality for all."
                )
            return self._decide(1, 0, int(values.shape[0]), None)
        if forward.steering is not None and values.ndim == 2:
            forward.flattened = forward.flattened or forward.steering.flattened(*forward.shape)
            return forward.flattened
        return forward.steering

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _steering_for_output(self, output: Tensor) -> TokenSteering | None:
        """The same, as the place of a dense part asks it."""
        if forward := self._forward.get():
            forward.outputs.append(None)
        return self._steering_of(output)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, _decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        forward, running = RunningForward(self._forward.get()), self._generate.get()
        self._forward.set(forward)
        in_force = self._in_force()
        given = self._signature.bind_partial(*arguments).arguments | keywords  # some decoders take keywords unnamed
        if any(in_force.selection.slots) or in_force.schedule:
            rows, first, length = forward_span(given)
            forward.shape = rows, length
            forward.steering = self._decide(rows, first, length, running)
        if running:
            running.begun = True
        forward.slots = self._as_data(forward.steering, given)
        self._hand(forward)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, _decoder: nn.Module, _arguments: Any, output: Any) -> None:
        forward = self._forward.get()
        if forward is None:  # another hook refused the forward before it reached ours
            return
        self._forward.set(forward.outer)
        self._hand(forward.outer)
        if output is None or forward.steering is None:
            return
        layers = self._layers_that_run()
        activations = sum(site.layer < layers for site, _ in self._originals)
        outputs = [steered.place for steered in self._outputs if steered.place.layer < layers]
        if self._model.training:  # layers may be dropped
            activations, outputs = 1, []
        if len(forward.activations) < activations:
            raise NptiError(
                f"{len(forward.activations)} of {activations} activations of {type(self._model).__name__} were called "
                f"in this forward, so {'not all' if forward.activations else 'nothing'} was steered: its feed-forward "
                "layers were replaced after the personality was loaded; unload it and load it again."
            )
        if len(forward.outputs) < len(outputs):
            raise NptiError(
                f"Nothing was added to the residual stream in this forward: of {', '.join(at.name for at in outputs)} "
                "not all were called; they were replaced after the personality was loaded; unload it and load it again."
            )

    def _as_data(self, steering: TokenSteering | None, given: Mapping[str, Any]) -> Tensor | None:
        """The slot of every token of a forward, int64 [rows, tokens], neutral ones too, so that no switch is seen."""
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if not isinstance(tokens, Tensor) or (steering and steering.dropout):
            return None
        slots = steering.slots if steering else 0
        if isinstance(slots, Tensor):
            return slots.expand(tokens.shape[:2]).contiguous()
        return torch.full(tokens.shape[:2], slots, device=self._device)

    def _hand(self, forward: RunningForward | None) -> None:
        """Hands what runs now to compiled code."""
        self._handed.slots = forward.slots if forward else None
        self._handed.activations = forward.activations if forward else []
        self._handed.outputs = forward.outputs if forward else []

    def _layers_that_run(self) -> int:
        """Number of decoder layers; drafts of early-exit decoding lower it for as long as they run."""
        config: Any = self._model.config
        return int(config.get_text_config().num_hidden_layers)

    def _decide(self, rows: int, first: int, length: int, running: RunningGenerate | None) -> TokenSteering | None:
        in_force = self._in_force()
        current, call = in_force.selection, running.call if running else None
        if running and call:
            faded = in_force.at(max(0, first + length - call.prompt_length), running.faded)
            if faded is not None:
                current, running.faded, running.dial = faded, faded, in_force
        if not any(current.slots):
            return None
        check_rows(len(current.slots), rows, call)
        scored = self._scored.get()
        if scored is not None and running is None:
            of_scored = scored_slots(list(current.slots), scored, current.positions, rows, first, length, self._device)
            return TokenSteering(of_scored, current.dropout)
        # Where generate does not show its ids (PEFT may go round it), its first forward must end within the prompt.
        shown = running is not None and (running.ids is not None or not running.begun)
        if running and call and shown and current.positions is not Positions.ALL:
            check_place(running.ids, call, first, length)
        start = first_steered(current.positions, call)
        if start is None and not self._warned:
            self._warned = True
            warnings.warn(
                "A plain forward has no generated positions, so nothing is steered in it; use generate, or load with "
                "positions='all'.",
                UserWarning,
                stacklevel=3,
            )
        slots = token_slots(list(current.slots), rows, first, length, start, self._device)
        if slots is not None and running and call and current.thinking:
            slots = answer_slots(slots, current.thinking, call, running.ids, first, length)
        return None if slots is None else TokenSteering(slots, current.dropout)

    def _recording(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """``generate`` that records, for the thread or task that calls it, how many rows it has and of what length."""

        @wraps(generate)
        def recorded(*arguments: Any, **keywords: Any) -> Any:
            running = RunningGenerate(generate_call_of(arguments, keywords))
            generating = self._generate.set(running)
            forward = self._forward.set(None)
            try:
                return generate(*arguments, **keywords)
            finally:
                # A KeyboardInterrupt passes by the hook that ends a forward, which torch calls on an Exception only.
                self._forward.reset(forward)
                self._hand(self._forward.get())
                self._generate.reset(generating)
                if running.faded and running.dial:
                    running.dial.let_go(running.faded)

        return recorded

    def _recording_ids(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """``prepare_inputs_for_generation`` that records the ids so far; beams change their order at every step."""

        @wraps(prepare)
        def recorded(input_ids: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if running := self._generate.get():
                running.ids = input_ids
            return prepare(input_ids, *arguments, **keywords)

        return recorded

    @property
    def _device(self) -> torch.device:
        """Where the first layer's tables are; they move with the model."""
        return self._tables[0].cap.device

    def __reduce__(self) -> NoReturn:
        # A copy's `generate` would be that of the model it was copied from.
        raise NptiError("A model that carries a personality cannot be copied or pickled; .unload() it first.")


def _refusing(_original: Callable[..., Any]) -> Callable[..., NoReturn]:
    """In the place of continuous batching: that runs the model in a thread of its own, on all prompts as one row, and
    replays CUDA graphs, so nothing of what is asked for would reach it.
    """

    def refuse(*_arguments: Any, **_keywords: Any) -> NoReturn:
        raise NptiError(
            "Continuous batching (generate_batch) is not steered in this release; call generate, serve the model with "
            "`npti-export serve`, or .unload() the personality first."
        )

    return refuse
