"""The decoder layers of a model that vLLM has loaded: each keeps what it got in a one-token forward and can run again.

So a layer is tried with what vLLM really hands it, whatever its forward takes, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npti_export.errors import NptiError


@dataclass
class LayerRun:
    """One call of a layer, kept so that it can be made again.

    Args:
        name: Dotted name of the layer within the model.
        layer: The decoder layer.
        context: vLLM's surroundings of a forward; without them attention does not run.
        arguments: What the layer was called with, by place and by name; None as long as it was not called.
    """

    name: str
    layer: nn.Module
    context: Callable[[], AbstractContextManager[None]]
    arguments: tuple[Any, Any] | None = None

    def record(self, _layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A forward pre-hook that keeps the arguments of the first call."""
        if self.arguments is None:
            self.arguments = _copied(arguments), _copied(keywords)

    def again(self) -> list[Tensor]:
        """Calls the layer as it was called.

        Returns:
            The tensors that it returns: the residual stream [1, hidden], or two that the next layer adds up.
        """
        assert self.arguments is not None
        # Copies, because vLLM's norms write into what they are given.
        arguments, keywords = _copied(self.arguments)
        with self.context():
            output = self.layer(*arguments, **keywords)
        return [part for part in (output if isinstance(output, tuple) else (output,)) if isinstance(part, Tensor)]


@torch.inference_mode()
def run_layers(runner: Any, names: Sequence[str]) -> list[LayerRun]:
    """Runs the model on one token, not compiled and without a cache, and keeps what its decoder layers got.

    Args:
        runner: vLLM's model runner, its model loaded.
        names: Dotted names of the layers within the model.

    Raises:
        NptiError: If one does not run.
    """
    from vllm.forward_context import set_forward_context

    model: nn.Module = runner.get_model()

    @contextmanager
    def context() -> Iterator[None]:
        with _silent_mixers(model), set_forward_context(None, runner.vllm_config, num_tokens=1, skip_compiled=True):
            yield

    runs = [LayerRun(name, model.get_submodule(name), context) for name in names]
    hooks = [run.layer.register_forward_pre_hook(run.record, with_kwargs=True) for run in runs]
    # Padding often has the embedding 0, and then everything behind it may be 0 and tell nothing.
    token = int(getattr(runner.vllm_config.model_config.hf_text_config, "pad_token_id", None) == 0)
    shape = (3, 1) if runner.uses_mrope else (1,)
    try:
        with context():
            model(
                input_ids=torch.full((1,), token, dtype=torch.int32, device=runner.device),
                positions=torch.zeros(shape, dtype=torch.int64, device=runner.device),
                intermediate_tensors=None,
                inputs_embeds=None,
            )
    finally:
        for hook in hooks:
            hook.remove()
    for run in runs:
        if run.arguments is None:
            raise NptiError(
                f"{type(model).__name__} cannot be served with personalities: its layer {run.name} does not run in a "
                "forward, so nothing would be steered there."
            )
    return runs


def stream_of(output: list[Tensor]) -> Tensor:
    """The residual stream behind a layer: what it returned, or the sum where the next layer is left to add.

    A model that returns the stream and, beside it, an older one that nobody reads (StableLM) gives a sum too; it moves
    as the stream moves, which is all that is looked at.

    Args:
        output: From :meth:`LayerRun.again`.

    >>> stream_of([torch.ones(1, 2), torch.ones(1, 2)]).tolist()
    [[2.0, 2.0]]
    """
    first, *others = output
    return first + others[0] if others and others[0].shape == first.shape else first


@contextmanager
def _silent_mixers(model: nn.Module) -> Iterator[None]:
    """Attention, and what stands in its place, answers 0: without a cache vLLM's leaves memory as it finds it."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    mixers = [module for module in model.modules() if isinstance(module, AttentionLayerBase)]
    for mixer in mixers:
        # Not a hook: models that vLLM takes from transformers call its forward by name.
        vars(mixer)["forward"] = _silent(mixer.forward)
    try:
        yield
    finally:
        for mixer in mixers:
            del vars(mixer)["forward"]


def _silent(forward: Callable[..., Any]) -> Callable[..., Any]:
    def silent_forward(*arguments: Any, **keywords: Any) -> Any:
        output, written = forward(*arguments, **keywords), keywords.get("output")
        if isinstance(written, Tensor):
            written.zero_()
        return torch.zeros_like(output) if isinstance(output, Tensor) else output

    return silent_forward


def _copied(value: Any) -> Any:
    """The same arguments, their tensors copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return value
