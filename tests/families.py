"""Every family of models that the tests build, with what a tiny one needs and where its activation is expected.

``python tests/families.py`` steers each of them and writes ``docs/families.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from adapters_for_tests import make_adapter, with_dense_parts
from equation_4 import edit_of
from mixtures import MIXTURES, check_mixture
from tiny_models import SIZES, tiny
from torch import Tensor, nn

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole

IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])
NEW_TOKENS = 4


@dataclass(frozen=True)
class Family:
    """A family of dense models.

    Args:
        name: The name of its config class in transformers, without ``Config``.
        place: Where the activation of layer ``N`` sits.
        wiring: ``gated``, ``fused`` (gate and up in one map) or ``plain``.
        sizes: What a tiny config needs beside the usual.
        output: Where the dense part of layer ``N`` is added; None where it cannot be.
        note: What is special.
        fast: Whether the fast suite builds it.
    """

    name: str
    place: str
    wiring: str
    sizes: dict[str, object] = field(default_factory=dict)
    output: str | None = "model.layers.N.mlp.down_proj"
    note: str = ""
    fast: bool = False

    @property
    def functional(self) -> bool:
        """Whether the activation is a function and no module."""
        return self.place.endswith("()")


MLP = "model.layers.N.mlp.act_fn"
NORM = "model.layers.N.post_feedforward_layernorm"
GPT_OUTPUT = "transformer.h.N.mlp.dropout"
DENSE_4H_TO_H = "transformer.h.N.mlp.dense_4h_to_h"
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}

DENSE = [
    *(
        Family(name, MLP, "gated", sizes)
        for name, sizes in {
            "Llama": {},
            "Mistral": {},
            "Ministral": {"head_dim": 8},
            "Qwen2": {},
            "Qwen3": {"head_dim": 8},
            "Gemma": {"head_dim": 8},
        }.items()
    ),
    *(Family(name, MLP, "gated", {"head_dim": 8}, NORM) for name in ("Gemma2", "Gemma3Text")),
    Family(
        "Gemma3nText",
        MLP,
        "gated",
        {
            "head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.9, 0.0],
            "layer_types": ["sliding_attention", "full_attention"],
        },
        None,
        "top-k sparsity before the activation; `layers.N.act_fn` is another one and is left alone; a dense part is "
        "refused, because its layers hand on four streams",
        fast=True,
    ),
    Family(
        "Phi3",
        "model.layers.N.mlp.activation_fn",
        "fused",
        {},
        "model.layers.N.resid_mlp_dropout",
        "gate and up in one map",
        fast=True,
    ),
    Family("Glm", "model.layers.N.mlp.activation_fn", "fused", {"head_dim": 8}, note="gate and up in one map"),
    Family(
        "Glm4",
        "model.layers.N.mlp.activation_fn",
        "fused",
        {"head_dim": 8},
        "model.layers.N.post_mlp_layernorm",
        "gate and up in one map",
    ),
    *(Family(name, MLP, "gated", {}, NORM) for name in ("Olmo2", "Olmo3", "Exaone4")),
    Family("StableLm", MLP, "gated", {}, "model.layers.N.dropout"),
    *(
        Family(name, MLP, "gated", sizes)
        for name, sizes in {
            "Olmo": {},
            "Granite": {},
            "Cohere": {},
            "Cohere2": {"head_dim": 8},
            "SmolLM3": {},
            "Ernie4_5": {"head_dim": 8},
            "SeedOss": {"head_dim": 8},
            "HunYuanDenseV1": {"head_dim": 8},
            "Helium": {"head_dim": 8},
        }.items()
    ),
    Family(
        "FalconH1",
        "model.layers.N.feed_forward.act_fn",
        "gated",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "head_dim": 8,
            "mlp_multipliers": [0.7, 0.4],
        },
        "model.layers.N.feed_forward",
        "the gate is scaled before the activation and the block's output behind it; the Mamba part's activation is "
        "left alone",
    ),
    Family(
        "Lfm2",
        "model.layers.N.feed_forward: silu()",
        "gated",
        {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
        "model.layers.N.feed_forward.w2",
        "a function; the block gets a forward of its own that calls a module",
        fast=True,
    ),
    Family("GPT2", "transformer.h.N.mlp.act", "plain", GPT, GPT_OUTPUT, "weights stored transposed", fast=True),
    Family(
        "GPTNeo",
        "transformer.h.N.mlp.act",
        "plain",
        {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
        GPT_OUTPUT,
    ),
    Family("GPTJ", "transformer.h.N.mlp.act", "plain", {**GPT, "rotary_dim": 4}, GPT_OUTPUT),
    Family("GPTNeoX", "gpt_neox.layers.N.mlp.act", "plain", {}, "gpt_neox.layers.N.post_mlp_dropout"),
    Family(
        "OPT",
        "model.decoder.layers.N.activation_fn",
        "plain",
        {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers.N.fc2",
        "in the layer itself; rows and tokens are flattened",
        fast=True,
    ),
    Family("Bloom", "transformer.h.N.mlp.gelu_impl", "plain", {"n_layer": 2, "n_head": 4}, DENSE_4H_TO_H),
    Family("Falcon", "transformer.h.N.mlp.act", "plain", {"ffn_hidden_size": 48}, DENSE_4H_TO_H),
    Family("Phi", "model.layers.N.mlp.activation_fn", "plain", {}, "model.layers.N.mlp.fc2"),
    Family("Starcoder2", "model.layers.N.mlp.act", "plain", {}, "model.layers.N.mlp.c_proj"),
    Family("Nemotron", MLP, "plain"),
    Family("Apertus", MLP, "plain", note="xIELU, which has parameters; they keep their names", fast=True),
    Family("Arcee", MLP, "plain"),
]

MAMBA = {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8}
REFUSED: list[tuple[str, str, dict[str, object]]] = [
    ("Mamba", "state-space or convolution mixer and no feed-forward block", {}),
    ("Mamba2", "state-space or convolution mixer and no feed-forward block", MAMBA),
    ("FalconMamba", "state-space or convolution mixer and no feed-forward block", {}),
    ("Rwkv", "a recurrent network", {}),
]


def build(family: Family) -> nn.Module:
    """A tiny model of a family."""
    return tiny(family.name, **family.sizes)


@contextmanager
def steered(family: Family, model: nn.Module, adapter: PersonalityAdapter, decoding_only: bool) -> Iterator[None]:
    """The adapter's edits by plain forward hooks, or a patched function, where the list says, not the package."""
    layers = range(SIZES["num_hidden_layers"])
    residual = adapter.traits["openness"].poles[Pole.HIGH].residual
    edits = [edit_of(adapter, "openness", Pole.HIGH, layer) for layer in layers]

    def applies(activation: Tensor) -> bool:
        tokens = activation.shape[1] if activation.ndim == 3 else len(activation) // len(IDS)
        return not decoding_only or tokens == 1

    def hook(layer: int) -> Callable[..., Tensor]:
        return lambda _module, _given, out: edits[layer](None, None, out) if applies(out) else out

    def add(vector: Tensor) -> Callable[..., Tensor]:
        return lambda _module, _given, out: out + vector.to(out.dtype) if applies(out) else out

    hooks = []
    if residual is not None:
        for n, vector in zip(residual.layer, torch.from_numpy(residual.vector), strict=True):
            output = model.get_submodule(str(family.output).replace("N", str(n)))
            hooks.append(output.register_forward_hook(add(vector)))
    if family.functional:
        calls, silu = iter(range(10**6)), nn.functional.silu

        def patched(given: Tensor) -> Tensor:
            return hook(next(calls) % len(layers))(None, None, silu(given))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "silu", patched)
            try:
                yield
            finally:
                for handle in hooks:
                    handle.remove()
        return
    for n in layers:
        hooks.append(model.get_submodule(family.place.replace("N", str(n))).register_forward_hook(hook(n)))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of one forward on all tokens."""
    return model(input_ids=IDS).logits


def generated_logits(model: nn.Module) -> Tensor:
    """Of every step of a greedy generation with a cache, [rows, steps, vocabulary]."""
    out = model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(out.logits, dim=1)


def everything(model: nn.Module) -> dict[str, object]:
    """What unloading must restore: modules, their attributes and hooks, the state dict's keys."""
    modules = dict(model.named_modules())
    state = {name: sorted(vars(module)) for name, module in modules.items()}
    hooks = {name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in modules.items()}
    return {"ids": {name: id(module) for name, module in modules.items()}, "state": state, "hooks": hooks}


def check(family: Family) -> str:
    """Steers a tiny model of the family in every way; the result in a few words, or an AssertionError."""
    for dtype in (torch.float32, torch.bfloat16):
        model = build(family).to(dtype)
        keys, before, plain = list(model.state_dict()), everything(model), logits(model)
        adapter = make_adapter(model)
        sites = find_sites(model)
        assert everything(model) == before, "finding the sites left a trace"
        place = family.place.replace(": silu()", ".act_fn")
        assert [site.name for site in sites] == [place.replace("N", str(n)) for n in range(len(sites))]
        assert {site.gated for site in sites} == {family.wiring != "plain"}
        dense = with_dense_parts(adapter, SIZES["hidden_size"], range(len(sites)))
        if family.output is None:
            with pytest.raises(NptiError, match="there is no one stream"):
                load_personality(model, "openness+", dense)
            assert everything(model) == before, "refusing the dense part left a trace"
            adapters = [adapter]
        else:
            adapters = [adapter, dense]
        of_each = []
        for adapter in adapters:
            with steered(family, model, adapter, decoding_only=False):
                expected = logits(model)
            assert not any(torch.equal(expected, other) for other in [plain, *of_each]), "the hooks changed nothing"
            of_each.append(expected)
            with load_personality(model, "openness+", adapter, positions="all") as personality:
                assert torch.equal(logits(model), expected), "steered logits differ from plain hooks"
                assert list(model.state_dict()) == keys
                personality.set(["openness+", None])
                mixed = logits(model)
                assert torch.equal(mixed[0], expected[0]), "the steered row of a mixed batch differs"
                assert torch.equal(mixed[1], plain[1]), "the neutral row of a mixed batch differs"
                personality.set(None)
                assert torch.equal(logits(model), plain), "neutral differs"
            assert everything(model) == before, "unloading left a trace"
            assert torch.equal(logits(model), plain), "unloading did not restore"
        if dtype == torch.float32:
            unsteered = generated_logits(model)
            with steered(family, model, adapters[-1], decoding_only=True):
                expected = generated_logits(model)
            with load_personality(model, "openness+", adapters[-1]):
                assert torch.equal(generated_logits(model), expected), "generation differs from plain hooks"
            assert torch.equal(expected[:, 0], unsteered[:, 0])
            assert not torch.equal(expected, unsteered)
            assert torch.equal(generated_logits(model), unsteered)
    return "equal"


def refusal(name: str, sizes: dict[str, object]) -> str:
    """Why a family is refused; an AssertionError if it is not."""
    model = tiny(name, **sizes)
    before = everything(model)
    with pytest.raises(NptiError) as refused:
        find_sites(model)
    assert everything(model) == before
    return str(refused.value)


HEAD = """# Model families

Written by `python tests/families.py`, which builds a tiny random model of each family, loads an adapter and compares
with an independent implementation: plain forward hooks at the places named below, or a patched function call where
there is no module. It is done twice, with equation 4 on the neurons, and with it and vectors for the residual stream
together (`residual`, `hybrid` and `fitted`). *Equal* means bit for bit: the logits of a forward in float32 and
bfloat16 (all rows steered; a mixed batch of one steered and one neutral row; neutral), the logits of every step of a
generation with a cache in float32, and, after unloading, the model as it was, object by object. The names are those of
the config classes of transformers 5.

## Dense models

*Gated*: `down(act(gate(x)) · up(x))`; *fused*: the same with gate and up in one map; *plain*: `down(act(up(x)))`.

| family | layer | where the activation of layer N sits | after which module its vector is added | result | special |
|---|---|---|---|---|---|
"""

MIXTURES_HEAD = """
## Mixtures of experts

The routed experts are written anew for the comparison, one expert after the other, each on the tokens that were routed
to it; beside them there are plain hooks. All three ways in which transformers runs experts are tried (`eager`,
`grouped_mm`, `batched_mm`; Llama 4 has but one), and routers are left alone. *Equal* means bit for bit under `eager`
and to rounding (1e-5 in float32, 0.02 in bfloat16, where logits are below 1) under the others, which add up in another
order; neutral and unloading bit for bit under all of them; rows of a mixed batch bit for bit under `batched_mm` and for
Llama 4, to rounding under the others, where which rows stand together changes how they are added up.

| family | activation of the experts of layer N | of the shared expert | without experts | vector | result | special |
|---|---|---|---|---|---|---|
"""

MIDDLE = """
Vision-language models are steered in the language tower alone ([runtime.md](runtime.md) has those that were tried). A
family that is not in the table works if its layers are built like one of these: the sites are found by their shape and
proved by a forward on one token, and what does not behave like a feed-forward layer is refused with the name of the
module.

## Refused

| family | reason given |
|---|---|
"""


def table() -> str:
    """The text of ``docs/families.md``; every family is built and steered."""
    text = HEAD
    for family in DENSE:
        output = f"`{family.output}`" if family.output else "refused"
        places = f"`{family.place}` | {output}"
        text += f"| {family.name} | {family.wiring} | {places} | {check(family)} | {family.note or '–'} |\n"
    text += MIXTURES_HEAD
    for mixture in MIXTURES:
        [result] = {check_mixture(mixture, implementation) for implementation in mixture.implementations}
        cells = [mixture.activation, mixture.beside, mixture.dense, mixture.output]
        places = " | ".join(f"`{place}`" if place else "–" for place in cells)
        text += f"| {mixture.name} | {places} | {result} | {mixture.note or '–'} |\n"
    text += MIDDLE
    for name, _, sizes in REFUSED:
        text += f"| {name} | {refusal(name, sizes)} |\n"
    return text


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    (Path(__file__).parent.parent / "docs" / "families.md").write_text(table(), encoding="utf-8")
