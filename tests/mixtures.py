"""Every mixture of experts that the tests build, and its experts written anew to hold the package's tables against.

``tests/families.py`` writes the results into ``docs/families.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from adapters_for_tests import make_adapter, with_dense_parts
from equation_4 import edit_of
from tiny_models import SIZES, tiny
from torch import Tensor, nn

from npti_export import PersonalityAdapter, load_personality
from npti_export.steering.sites import find_sites
from npti_export.traits import Pole

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
ALIKE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""How far logits may lie from those of another way of running the same experts; they are below 1."""


@dataclass(frozen=True)
class Mixture:
    """A family of mixtures of experts.

    Args:
        name: The name of its config class in transformers, without ``Config``.
        experts: Where the routed experts of layer ``N`` are.
        layers: Which of the two layers have some.
        beside: Where the activation of the shared expert of layer ``N`` sits; None where there is none.
        dense: Where the activation of a layer ``N`` without experts sits.
        sizes: What a tiny config needs beside the usual.
        output: Where the dense part of layer ``N``, which has experts, is added.
        note: What is special.
        fast: With which way of running its experts the fast suite builds it, if it does.
    """

    name: str
    experts: str = "model.layers.N.mlp.experts"
    layers: tuple[int, ...] = (0, 1)
    beside: str | None = None
    dense: str | None = None
    sizes: dict[str, object] = field(default_factory=dict)
    output: str = "model.layers.N.mlp"
    note: str = ""
    fast: str | None = None

    @property
    def activation(self) -> str:
        """Where the experts' activation sits."""
        return f"{self.experts}: _apply_gate()" if self.name == "GptOss" else f"{self.experts}.act_fn"

    @property
    def implementations(self) -> tuple[str, ...]:
        """The ways in which transformers can run the experts."""
        return ("eager",) if self.name == "Llama4Text" else IMPLEMENTATIONS


SHARED = "model.layers.N.mlp.shared_experts.act_fn"
SHARED_OUTPUT = "model.layers.N.mlp.shared_experts"
FEW = {"num_experts_per_tok": 2}

MIXTURES = [
    Mixture("Mixtral", sizes={"num_local_experts": 4}, fast="grouped_mm"),
    Mixture(
        "Qwen2Moe",
        beside="model.layers.N.mlp.shared_expert.act_fn",
        sizes={**FEW, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        note="the shared expert runs on flattened rows and is weighted by a gate of its own, which is left alone",
    ),
    Mixture("Qwen3Moe", sizes={**FEW, "moe_intermediate_size": 24, "num_experts": 4, "head_dim": 8}),
    Mixture("Olmoe", sizes={**FEW, "num_experts": 4}),
    Mixture(
        "GptOss",
        sizes={**FEW, "num_local_experts": 4, "head_dim": 8},
        output="model.layers.N.mlp.experts",
        note="a method; gate and up by turns, clamped, `(up + 1)`; the experts get an `_apply_gate` of their own that "
        "calls a module",
        fast="batched_mm",
    ),
    Mixture(
        "DeepseekV3",
        layers=(1,),
        beside=SHARED,
        dense="model.layers.N.mlp.act_fn",
        sizes={
            **FEW,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        output=SHARED_OUTPUT,
        note="first layers dense",
        fast="eager",
    ),
    Mixture(
        "Glm4Moe",
        layers=(1,),
        beside=SHARED,
        dense="model.layers.N.mlp.act_fn",
        sizes={**FEW, "moe_intermediate_size": 24, "n_routed_experts": 4, "first_k_dense_replace": 1, "head_dim": 8},
        output=SHARED_OUTPUT,
        note="first layers dense",
    ),
    Mixture(
        "GraniteMoe",
        "model.layers.N.block_sparse_moe.experts",
        sizes={**FEW, "num_local_experts": 4},
        output="model.layers.N.block_sparse_moe",
    ),
    Mixture("Phimoe", sizes={**FEW, "num_local_experts": 4}),
    Mixture(
        "Llama4Text",
        "model.layers.N.feed_forward.experts",
        beside="model.layers.N.feed_forward.shared_expert.activation_fn",
        sizes={"num_local_experts": 4, "intermediate_size_mlp": 48, "head_dim": 8},
        output="model.layers.N.feed_forward.shared_expert",
        note="every expert runs on every token, and those that a token is not routed to on zeros",
        fast="eager",
    ),
    Mixture(
        "Jamba",
        "model.layers.N.feed_forward.experts",
        layers=(1,),
        dense="model.layers.N.feed_forward.act_fn",
        sizes={
            **FEW,
            "num_experts": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
        output="model.layers.N.feed_forward",
        note="dense layers and layers of experts alternate; the Mamba part's activation is left alone",
    ),
    Mixture(
        "Ernie4_5_Moe",
        layers=(1,),
        beside=SHARED,
        dense="model.layers.N.mlp.act_fn",
        sizes={"moe_intermediate_size": 24, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 2},
        output="model.layers.N.mlp",
        note="first layers dense; the shared expert runs on flattened rows",
    ),
]

Edit = Callable[[Tensor], Tensor]


def swiglu(experts: nn.Module, expert: int, x: Tensor, edit: Edit) -> Tensor:
    """One expert of Mixtral and its like on some tokens, its activation edited."""
    gate, up = nn.functional.linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return nn.functional.linear(edit(experts.act_fn(gate)) * up, experts.down_proj[expert])


def clamped(experts: nn.Module, expert: int, x: Tensor, edit: Edit) -> Tensor:
    """One expert of gpt-oss on some tokens, its activation edited."""
    both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = both[..., 0::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
    activation = edit(gate * torch.sigmoid(gate * 1.702))
    return (up + 1) * activation @ experts.down_proj[expert] + experts.down_proj_bias[expert]


def routed(experts: nn.Module, of_expert: Callable[..., Tensor], edits: list[Edit]) -> Callable[..., Tensor]:
    """A ``forward`` for experts: one after the other, each on the tokens that were routed to it."""

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        for expert in sorted(set(chosen.flatten().tolist())):
            place, token = torch.where(expert == chosen.T)
            out = of_expert(experts, expert, hidden[token], edits[expert])
            result.index_add_(0, token, (out * weights[token, place, None]).to(result.dtype))
        return result

    return forward


def on_every_token(experts: nn.Module, edits: list[Edit]) -> Callable[..., Tensor]:
    """A ``forward`` for the experts of Llama 4, which get the tokens once for each of them."""

    def forward(hidden: Tensor) -> Tensor:
        given = hidden.view(len(edits), -1, hidden.shape[-1])
        gate, up = torch.bmm(given, experts.gate_up_proj).chunk(2, dim=-1)
        activation = experts.act_fn(gate)
        edited = torch.stack([edit(of) for edit, of in zip(edits, activation, strict=True)])
        return torch.bmm(up * edited, experts.down_proj).view(-1, hidden.shape[-1])

    return forward


@contextmanager
def steered(
    mixture: Mixture, model: nn.Module, adapter: PersonalityAdapter, applies: Callable[[Tensor], bool]
) -> Iterator[None]:
    """The adapter's edits without the package: experts written anew, plain forward hooks beside them.

    Args:
        mixture: What stands where in the model.
        model: The model.
        adapter: Whose ``openness+`` it is.
        applies: Says of an activation [..., tokens, width], or of the hidden states, whether its tokens are steered.
    """

    def hook(edit: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda _module, _given, out: edit(None, None, out) if applies(out) else out

    def add(vector: Tensor) -> Callable[..., Tensor]:
        return lambda _module, _given, out: out + vector.to(out.dtype) if applies(out) else out

    def at(place: str, layer: int) -> nn.Module:
        return model.get_submodule(place.replace("N", str(layer)))

    hooks, rewritten = [], []
    for layer in range(SIZES["num_hidden_layers"]):
        whole = mixture.beside if layer in mixture.layers else mixture.dense
        if whole:
            hooks.append(at(whole, layer).register_forward_hook(hook(edit_of(adapter, "openness", Pole.HIGH, layer))))
        if layer not in mixture.layers:
            continue
        experts = at(mixture.experts, layer)
        edits = [edit_of(adapter, "openness", Pole.HIGH, layer, e) for e in range(len(experts.down_proj))]
        only = [partial(edit, None, None) for edit in edits]
        if mixture.name == "Llama4Text":
            new, plain = on_every_token(experts, only), experts.forward
        else:
            new = routed(experts, clamped if mixture.name == "GptOss" else swiglu, only)
            plain = experts.forward
        vars(experts)["forward"] = _either(new, plain, applies, len(edits) if mixture.name == "Llama4Text" else 1)
        rewritten.append(experts)
    residual = adapter.traits["openness"].poles[Pole.HIGH].residual
    if residual is not None:
        for layer, vector in zip(residual.layer, torch.from_numpy(residual.vector), strict=True):
            hooks.append(at(mixture.output, layer).register_forward_hook(add(vector)))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
        for experts in rewritten:
            del vars(experts)["forward"]


def _either(
    new: Callable[..., Tensor], plain: Callable[..., Tensor], applies: Callable[[Tensor], bool], times: int
) -> Callable[..., Tensor]:
    def forward(hidden: Tensor, *arguments: Tensor) -> Tensor:
        return (new if applies(hidden[: len(hidden) // times]) else plain)(hidden, *arguments)

    return forward


def build(mixture: Mixture, implementation: str = "eager") -> nn.Module:
    """A tiny model of a family, its experts run in a certain way."""
    model = tiny(mixture.name, **mixture.sizes)
    if len(mixture.implementations) > 1:
        model.set_experts_implementation(implementation)
    return model


def places(mixture: Mixture) -> list[str]:
    """The names of the sites that are expected."""
    found = []
    for layer in range(SIZES["num_hidden_layers"]):
        of_layer = [mixture.beside, f"{mixture.experts}.act_fn"] if layer in mixture.layers else [mixture.dense]
        found += [place.replace("N", str(layer)) for place in of_layer if place]
    return found


def check_mixture(mixture: Mixture, implementation: str) -> str:
    """Steers a tiny model of the family in every way; the result in a few words, or an AssertionError."""
    for dtype in (torch.float32, torch.bfloat16):
        _check(mixture, implementation, dtype)
    return "equal"


def _check(mixture: Mixture, implementation: str, dtype: torch.dtype) -> None:
    from families import IDS, everything, generated_logits, logits  # they write the table of both

    model = build(mixture, implementation).to(dtype)
    same = partial(_same, exact=implementation == "eager", dtype=dtype)
    keys, before, plain = list(model.state_dict()), everything(model), logits(model)
    assert [site.name for site in find_sites(model)] == places(mixture)
    assert everything(model) == before, "finding the sites left a trace"
    adapter = make_adapter(model)
    adapters = [adapter, with_dense_parts(adapter, SIZES["hidden_size"], mixture.layers)]
    others = [plain]
    for adapter in adapters:
        with steered(mixture, model, adapter, lambda _out: True):
            expected = logits(model)
        assert everything(model) == before
        assert all(_far(expected, other) for other in others), "the edits changed next to nothing"
        others.append(expected)
        with load_personality(model, "openness+", adapter, positions="all") as personality:
            whole = logits(model)
            assert same(whole, expected), "steered logits differ from the experts written anew"
            assert list(model.state_dict()) == keys
            personality.set(["openness+", None])
            mixed = logits(model)
            alone = implementation == "batched_mm" or len(mixture.implementations) == 1  # every row by itself
            assert _same(mixed[0], whole[0], alone, dtype), "the steered row of a mixed batch differs"
            assert _same(mixed[1], plain[1], alone, dtype), "the neutral row of a mixed batch differs"
            personality.set(None)
            assert torch.equal(logits(model), plain), "neutral differs"
        assert everything(model) == before, "unloading left a trace"
        assert torch.equal(logits(model), plain), "unloading did not restore"
    if dtype == torch.float32:
        unsteered = generated_logits(model)
        with steered(mixture, model, adapters[-1], lambda out: _one_a_row(out, len(IDS))):
            expected = generated_logits(model)
        with load_personality(model, "openness+", adapters[-1]):
            assert same(generated_logits(model), expected), "generation differs from the experts written anew"
        assert _far(expected[:, 1:], unsteered[:, 1:])
        assert torch.equal(generated_logits(model), unsteered)


def _one_a_row(out: Tensor, rows: int) -> bool:
    """Whether values are of one token a row, as in decoding: [rows, 1, …] or flattened [rows, …]."""
    return out.shape[1] == 1 if out.ndim == 3 else len(out) == rows


def _same(one: Tensor, other: Tensor, exact: bool, dtype: torch.dtype) -> bool:
    return torch.equal(one, other) if exact else bool((one - other).abs().max() <= ALIKE[dtype])


def _far(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 2 * ALIKE[one.dtype])
