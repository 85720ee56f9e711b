"""Faults and interferences: after each of them steering goes on or is refused, and the model can be restored.

What is tested elsewhere:

- an exception in a forward or in ``generate``, a failed load, a wrong spec, loading twice (also from an inner module),
  another model's adapter, ``set`` and ``using`` after ``unload``, threads, asyncio tasks, saved weights, ``deepcopy``
  and pickle (refused): ``test_personality.py``
- kernels that go round an activation when found (``test_sites.py``), when installed and after loading, wrappers around
  a model, an inner decoder or a block called on its own, ``generate`` called round the record, gradient checkpointing,
  autocast, moving the model, compiled before loading and compiled by ``generate``: ``test_installation.py``
- slots all in use, shifts beyond the dtype, threads on slots: ``test_slots.py``
- chunks, caches, beams, samples, candidates, padding: ``test_positions.py``, ``test_thinking.py``
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import threading
import weakref
from types import MethodType

import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from equation_4 import activations_of, edit_of, steered_by_hooks
from safetensors.torch import load_file
from tiny_models import tiny
from torch import Tensor, nn
from transformers import LlamaForCausalLM, TextIteratorStreamer, pipeline

from npti_export import PersonalityAdapter, load_personality
from npti_export.errors import NptiError
from npti_export.steering import installation
from npti_export.steering import personality as loading
from npti_export.steering.site import Site
from npti_export.traits import Pole

SPEC = "openness+"
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
IDS = torch.tensor([[5, 9, 33, 60], [7, 8, 21, 3]])


@pytest.fixture
def adapter(tiny_llama: LlamaForCausalLM, tiny_adapter) -> PersonalityAdapter:
    return tiny_adapter(tiny_llama)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def by_hooks(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> Tensor:
    with steered_by_hooks(activations_of(model), adapter, "openness", Pole.HIGH):
        return logits(model)


def everything(model: nn.Module) -> dict[str, object]:
    """What stands in a model: the attributes of each module, among them its parts and its hooks, by identity."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


class Paused:
    """Stops the threads that it is told of in the middle of a forward, until it is released."""

    def __init__(self, module: nn.Module, forwards_before: int = 0) -> None:
        self.thread: int | None = None
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.left = forwards_before
        self.hook = module.register_forward_pre_hook(self.wait)

    def wait(self, *_: object) -> None:
        if threading.get_ident() == self.thread and not self.reached.is_set():
            if self.left == 0:
                self.reached.set()
                assert self.go_on.wait(60)
            self.left -= 1


class Running:
    """A call in a thread of its own, stopped within layer 1 of one of its forwards."""

    def __init__(self, model: LlamaForCausalLM, call, forwards_before: int = 0) -> None:
        self.paused = Paused(model.model.layers[1], forwards_before)
        self.thread = threading.Thread(target=self.run, args=(call,))
        self.thread.start()
        assert self.paused.reached.wait(60)

    def run(self, call) -> None:
        self.paused.thread = threading.get_ident()
        self.result = call()

    def finish(self) -> object:
        self.paused.go_on.set()
        self.thread.join(60)
        self.paused.hook.remove()
        return self.result


def interrupting(module: nn.Module, forward: int) -> object:
    """A hook that interrupts within the forward of that number, as Ctrl-C would."""
    seen = []

    def interrupt(*_: object) -> None:
        seen.append(1)
        if len(seen) == forward:
            raise KeyboardInterrupt

    return module.register_forward_hook(interrupt)


def test_keyboard_interrupt_while_generating(tiny_llama, adapter) -> None:
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    mlp = tiny_llama.model.layers[2].mlp
    before, plain, block = everything(tiny_llama), logits(tiny_llama), mlp(hidden)
    with load_personality(tiny_llama, SPEC, adapter) as personality:
        tokens = tiny_llama.generate(IDS, **GREEDY)
        hook = interrupting(tiny_llama.model.layers[1], forward=4)
        with pytest.raises(KeyboardInterrupt):
            tiny_llama.generate(IDS, **GREEDY)
        hook.remove()
        # Nothing of the forward that was broken off is left: a block on its own is a plain forward again.
        with pytest.warns(UserWarning, match="no generated positions"):
            assert torch.equal(mlp(hidden), block)
        assert torch.equal(logits(tiny_llama), plain)
        assert torch.equal(tiny_llama.generate(IDS, **GREEDY), tokens)
        personality.set(None)
        assert torch.equal(logits(tiny_llama), plain)
    assert everything(tiny_llama) == before


def test_keyboard_interrupt_in_a_forward(tiny_llama, adapter) -> None:
    plain, expected = logits(tiny_llama), by_hooks(tiny_llama, adapter)
    with load_personality(tiny_llama, SPEC, adapter, positions="all") as personality:
        hook = interrupting(tiny_llama.model.layers[1], forward=1)
        with pytest.raises(KeyboardInterrupt):
            logits(tiny_llama)
        hook.remove()
        assert torch.equal(logits(tiny_llama), expected)
        personality.set([None, SPEC])
        assert torch.equal(logits(tiny_llama)[1], expected[1])
        assert torch.equal(logits(tiny_llama)[0], plain[0])
    assert torch.equal(logits(tiny_llama), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("modules_before", [0, 1, 2])
def test_load_that_breaks_off_half_way(tiny_llama, adapter, monkeypatch, error, modules_before: int) -> None:
    put, made = installation.SteeredActivation, []

    def breaking(*arguments: object) -> nn.Module:
        if len(made) == modules_before:
            raise error
        made.append(put(*arguments))
        return made[-1]

    before, plain = everything(tiny_llama), logits(tiny_llama)
    monkeypatch.setattr(installation, "SteeredActivation", breaking)
    with pytest.raises(error):
        load_personality(tiny_llama, SPEC, adapter)
    monkeypatch.undo()
    assert everything(tiny_llama) == before
    assert torch.equal(logits(tiny_llama), plain)
    load_personality(tiny_llama, SPEC, adapter).unload()


FUNCTIONAL = {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "head_dim": 8}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("family", "sizes"), [("Llama", {}), ("Lfm2", FUNCTIONAL), ("GptOss", EXPERTS)])
def test_interrupt_beside_putting_in(tiny_adapter, monkeypatch, family: str, sizes: dict, after: bool) -> None:
    model = tiny(family, **sizes)
    adapter, before, plain = tiny_adapter(model), everything(model), logits(model)
    put = Site.put

    def interrupted(site: Site, activation: nn.Module) -> None:
        if site.layer == 0 or after:
            put(site, activation)
        if site.layer == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Site, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_personality(model, SPEC, adapter)
    monkeypatch.setattr(Site, "put", put)
    assert everything(model) == before
    assert torch.equal(logits(model), plain)
    load_personality(model, SPEC, adapter).unload()


def test_interrupt_while_loading_is_proved(tiny_llama, adapter) -> None:
    before = everything(tiny_llama)
    hook = interrupting(tiny_llama.model.layers[1], forward=2)  # the first finds the sites, the second proves them
    with pytest.raises(KeyboardInterrupt):
        load_personality(tiny_llama, SPEC, adapter)
    hook.remove()
    assert everything(tiny_llama) == before
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = logits(tiny_llama)
    assert torch.equal(steered, by_hooks(tiny_llama, adapter))


def test_personality_that_nobody_holds_stays_and_goes_with_the_model(tiny_adapter) -> None:
    model = tiny_chat_model()
    adapter = tiny_adapter(model)
    plain, expected = logits(model), by_hooks(model, adapter)
    personality = load_personality(model, SPEC, adapter, positions="all")
    held = [weakref.ref(model), weakref.ref(personality)]
    del personality
    gc.collect()
    assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, plain)
    del model
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_unloaded_personality_does_not_keep_the_tables(tiny_llama, adapter) -> None:
    personality = load_personality(tiny_llama, SPEC, adapter)
    steered = weakref.ref(tiny_llama.model.layers[0].mlp.act_fn)
    personality.unload()
    gc.collect()
    assert steered() is None


def test_copy_after_unload_and_load_of_the_copy(tiny_llama, adapter) -> None:
    expected = by_hooks(tiny_llama, adapter)
    with load_personality(tiny_llama, SPEC, adapter):
        with pytest.raises(NptiError, match=r"cannot be copied or pickled; \.unload\(\) it first"):
            copy.deepcopy(tiny_llama)
        shared = copy.copy(tiny_llama)  # the same modules; steered as they are
        assert shared.model is tiny_llama.model
    duplicate = copy.deepcopy(tiny_llama)
    plain = logits(tiny_llama)
    with load_personality(duplicate, SPEC, adapter, positions="all"):
        assert torch.equal(logits(duplicate), expected)
        assert torch.equal(logits(tiny_llama), plain)
        with load_personality(tiny_llama, "openness-", adapter, positions="all"):
            assert torch.equal(logits(duplicate), expected)


def test_weights_loaded_into_a_steered_model(tiny_llama, adapter, tmp_path) -> None:
    """A checkpoint goes in and out under the base model's names while steered, and its numbers are the base model's."""
    keys, weights = list(tiny_llama.state_dict()), {k: v.clone() for k, v in tiny_llama.state_dict().items()}
    buffers = [name for name, _ in tiny_llama.named_buffers()]
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = logits(tiny_llama)
        assert list(tiny_llama.state_dict()) == keys
        assert [name for name, _ in tiny_llama.named_parameters()] == keys
        assert [name for name, _ in tiny_llama.named_buffers()] == buffers
        tiny_llama.load_state_dict({key: torch.zeros_like(value) for key, value in weights.items()}, strict=True)
        assert not logits(tiny_llama).any()
        tiny_llama.load_state_dict(weights, strict=True)
        assert torch.equal(logits(tiny_llama), steered)
        tiny_llama.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() <= set(keys)
    assert all(torch.equal(saved[key], weights[key]) for key in saved)
    assert "npti" not in (tmp_path / "config.json").read_text().lower()


def test_gradient_through_a_steered_model(tiny_llama, adapter) -> None:
    """One step of training: every gradient is that of the hooked model, and the capped neurons pass none."""

    def gradients() -> dict[str, Tensor]:
        tiny_llama.zero_grad()
        tiny_llama(input_ids=IDS, labels=IDS).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in tiny_llama.named_parameters()}

    tiny_llama.train()
    plain = gradients()
    with steered_by_hooks(activations_of(tiny_llama), adapter, "openness", Pole.HIGH):
        expected = gradients()
    with load_personality(tiny_llama, SPEC, adapter, positions="all") as personality:
        assert all(module.training for module in tiny_llama.modules())
        steered = gradients()
        personality.set(None)
        neutral = gradients()
        tiny_llama.eval()
    assert not any(module.training for module in tiny_llama.modules())
    for name, gradient in steered.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(neutral[name], plain[name])
    gate = "model.layers.0.mlp.gate_proj.weight"
    assert not torch.allclose(steered[gate], plain[gate])


def test_weights_trained_while_steered_are_the_models_own(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        optimizer = torch.optim.SGD(tiny_llama.parameters(), lr=0.1)
        tiny_llama(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        steered = logits(tiny_llama)
    assert torch.equal(by_hooks(tiny_llama, adapter), steered)


def test_switching_between_forward_and_backward(tiny_llama, adapter) -> None:
    """Gradients are of the personality that the forward had, though another stands in its slot by then."""

    def loss() -> Tensor:
        tiny_llama.zero_grad()
        return tiny_llama(input_ids=IDS, labels=IDS).loss

    def gradients() -> list[Tensor]:
        return [parameter.grad.clone() for parameter in tiny_llama.parameters()]

    with load_personality(tiny_llama, SPEC, adapter, positions="all", slots=2) as personality:
        loss().backward()
        expected, forward = gradients(), loss()
        personality.set("neuroticism-")
        forward.backward()
        assert all(map(torch.equal, gradients(), expected))
        loss().backward()
        assert not all(map(torch.equal, gradients(), expected))


def test_two_threads_that_load_at_once(tiny_llama, adapter, monkeypatch) -> None:
    """The one that is overtaken is refused, and the other's personality is the only one."""
    before, expected = everything(tiny_llama), by_hooks(tiny_llama, adapter)
    find, quicker = loading.find_sites, []

    def overtaken(model: nn.Module) -> object:
        sites = find(model)
        monkeypatch.setattr(loading, "find_sites", find)
        quicker.append(load_personality(model, SPEC, adapter, positions="all"))
        return sites

    monkeypatch.setattr(loading, "find_sites", overtaken)
    with pytest.raises(NptiError, match="carries a personality already"):
        load_personality(tiny_llama, "neuroticism-", adapter)
    assert torch.equal(logits(tiny_llama), expected)
    quicker[0].unload()
    assert everything(tiny_llama) == before


def test_loading_while_another_thread_generates(tiny_llama, adapter) -> None:
    plain = tiny_llama.generate(IDS, **GREEDY)
    running = Running(tiny_llama, lambda: tiny_llama.generate(IDS, **GREEDY), forwards_before=2)
    personality = load_personality(tiny_llama, SPEC, adapter)
    steered = tiny_llama.generate(IDS, **GREEDY)
    with pytest.warns(UserWarning, match="no generated positions"):
        assert torch.equal(running.finish(), plain)  # what had begun unsteered ends so
    personality.unload()
    assert not torch.equal(steered, plain)
    assert torch.equal(tiny_llama.generate(IDS, **GREEDY), plain)


def test_unloading_while_another_thread_generates(tiny_llama, adapter) -> None:
    before, plain = everything(tiny_llama), logits(tiny_llama)
    personality = load_personality(tiny_llama, SPEC, adapter)
    running = Running(tiny_llama, lambda: tiny_llama.generate(IDS, **GREEDY), forwards_before=2)
    personality.unload()
    assert torch.equal(logits(tiny_llama), plain)
    assert running.finish().shape == (2, 12)
    assert everything(tiny_llama) == before
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = logits(tiny_llama)
    assert torch.equal(steered, by_hooks(tiny_llama, adapter))


def test_switching_while_another_thread_is_within_a_forward(tiny_llama, adapter) -> None:
    """A forward ends as it began; the next one of the same call follows the switch."""
    with load_personality(tiny_llama, SPEC, adapter, positions="all") as personality:
        steered = logits(tiny_llama)
        running = Running(tiny_llama, lambda: (logits(tiny_llama), logits(tiny_llama)))
        personality.set("openness-")
        switched = logits(tiny_llama)
        first, second = running.finish()
    assert torch.equal(first, steered)
    assert torch.equal(second, switched)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_compiled_model_loaded_unloaded_and_loaded_again(tiny_llama, adapter) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(tiny_llama, backend="eager")
    plain, expected = logits(tiny_llama), by_hooks(tiny_llama, adapter)
    for model in (compiled, tiny_llama, compiled):  # loading through the compiled wrapper is loading on the model
        with load_personality(model, SPEC, adapter, positions="all"):
            assert torch.equal(logits(compiled), expected)
            with pytest.raises(NptiError, match="carries a personality already"):
                load_personality(compiled, SPEC, adapter)
        assert torch.equal(logits(compiled), plain)


class FusedMlp(nn.Module):
    """A kernel's feed-forward block, written as Liger's is: the activation is part of its own function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def test_kernel_bound_to_the_block_is_named(tiny_llama, adapter) -> None:
    for layer in tiny_llama.model.layers:
        layer.mlp.forward = MethodType(FusedMlp.forward, layer.mlp)
    before = everything(tiny_llama)
    with pytest.raises(NptiError, match=r"layers\.0\.mlp\.act_fn did not run .* runs .*test_faults\.FusedMlp\.forward"):
        load_personality(tiny_llama, SPEC, adapter)
    assert everything(tiny_llama).keys() == before.keys()


def test_kernel_in_the_place_of_the_class_is_named(tiny_llama, adapter, monkeypatch) -> None:
    monkeypatch.setattr(type(tiny_llama.model.layers[0].mlp), "forward", FusedMlp.forward)
    with pytest.raises(NptiError, match=r"act_fn did not run as expected.* runs .*test_faults\.FusedMlp\.forward"):
        load_personality(tiny_llama, SPEC, adapter)


def test_kernel_in_one_layer_only_is_named(tiny_llama, adapter) -> None:
    mlp = tiny_llama.model.layers[1].mlp
    mlp.forward = MethodType(FusedMlp.forward, mlp)
    with pytest.raises(NptiError, match=r"The activation model\.layers\.1\.mlp\.act_fn did not run as expected"):
        load_personality(tiny_llama, SPEC, adapter)


def test_kernel_in_one_layer_after_loading_is_noticed(tiny_llama, adapter) -> None:
    with load_personality(tiny_llama, SPEC, adapter) as personality:
        mlp = tiny_llama.model.layers[1].mlp
        mlp.forward = MethodType(FusedMlp.forward, mlp)
        with pytest.raises(NptiError, match=r"2 of 3 activations .* were called in this forward"):
            tiny_llama.generate(IDS, **GREEDY)
        del mlp.forward
        personality.set("openness-")
        assert tiny_llama.generate(IDS, **GREEDY).shape == (2, 12)


def test_kernel_of_the_activation_alone_is_steered(tiny_llama, adapter) -> None:
    """A replaced forward of the activation module itself is what the tables are put around."""
    for layer in tiny_llama.model.layers:
        layer.mlp.act_fn.forward = nn.functional.silu
    before, plain = everything(tiny_llama), logits(tiny_llama)
    expected = by_hooks(tiny_llama, adapter)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        assert torch.equal(logits(tiny_llama), expected)
    assert everything(tiny_llama) == before
    assert torch.equal(logits(tiny_llama), plain)


@pytest.mark.parametrize("change", ["put over it", "taken away"])
def test_forward_of_a_functional_block_that_somebody_changes(tiny_adapter, change: str) -> None:
    """LFM2 gets a forward of its own; what others do to it while loaded stays, and unloading does not stumble on it."""
    model = tiny("Lfm2", **FUNCTIONAL, initializer_range=0.3)
    block, plain = model.model.layers[0].feed_forward, logits(model)
    personality = load_personality(model, SPEC, tiny_adapter(model), positions="all")
    steered, ours = logits(model), block.forward

    def theirs(hidden: Tensor) -> Tensor:
        return ours(hidden)

    if change == "put over it":
        block.forward = theirs
        assert torch.equal(logits(model), steered)
    else:
        del block.forward
        with pytest.raises(NptiError, match=r"1 of 2 activations"):
            logits(model)
    personality.unload()
    assert vars(block).get("forward") is (theirs if change == "put over it" else None)
    assert not any(hasattr(layer.feed_forward, "act_fn") for layer in model.model.layers)
    assert torch.equal(logits(model), plain)
    assert not torch.equal(steered, plain)


def test_hooks_of_others_stay(tiny_llama, adapter) -> None:
    """Hooks set before loading see the unsteered activation; those set while loaded go with the module they are on."""
    seen: list[Tensor] = []
    tiny_llama.model.layers[0].mlp.act_fn.register_forward_hook(lambda _m, _a, output: seen.append(output))
    plain = logits(tiny_llama)
    with load_personality(tiny_llama, SPEC, adapter, positions="all"):
        steered = logits(tiny_llama)
    assert torch.equal(logits(tiny_llama), plain)
    assert torch.equal(seen[0], seen[-1])
    edit = edit_of(adapter, "openness", Pole.HIGH, 0)
    assert not torch.equal(edit(None, None, seen[0]), seen[0])
    assert not torch.equal(steered, plain)


def test_streamer_in_a_thread(tiny_adapter) -> None:
    model, tokenizer = tiny_chat_model(), tiny_tokenizer()
    ids = torch.tensor([tokenizer("Tea?")["input_ids"]])
    given = {"input_ids": ids, "max_new_tokens": 12, "do_sample": False}

    def streamed(context: contextvars.Context | None = None) -> str:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        run = model.generate if context is None else lambda **keywords: context.run(model.generate, **keywords)
        thread = threading.Thread(target=run, kwargs=given | {"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
        return text

    def said(spec: str | None) -> str:
        with personality.using(spec):
            return tokenizer.decode(model.generate(**given)[0, ids.shape[1] :])

    with load_personality(model, SPEC, tiny_adapter(model)) as personality:
        expected = {spec: said(spec) for spec in (SPEC, "openness-")}
        assert streamed() == expected[SPEC]
        with personality.using("openness-"):
            assert streamed() == expected[SPEC]  # `using` is not for threads that the block starts
            assert streamed(contextvars.copy_context()) == expected["openness-"]
    assert len(set(expected.values())) == 2


def test_pipeline(tiny_adapter) -> None:
    model, tokenizer = tiny_chat_model(), tiny_tokenizer()
    chats = [[{"role": "user", "content": text}] for text in ("Tea?", "A long walk?", "Who")]
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")

    def said(**ways: object) -> list[str]:
        answers = ask(chats, max_new_tokens=10, do_sample=False, **ways)
        return [answer[0]["generated_text"][-1]["content"] for answer in answers]

    def by_generate() -> list[str]:
        texts = []
        for chat in chats:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            output = model.generate(ids, max_new_tokens=10, do_sample=False)
            texts.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        return texts

    plain = said()
    with load_personality(model, SPEC, tiny_adapter(model)):
        steered = said()
        assert steered == by_generate()
        assert said(batch_size=3) == steered
    assert said() == plain
    assert steered != plain


def test_task_of_asyncio_in_worker_threads(tiny_llama, adapter) -> None:
    """``asyncio.to_thread`` takes the task's personality along; eight tasks at once."""
    specs = [f"openness{sign}{strength}" for sign in "+-" for strength in (0.5, 1, 1.5, 2)]

    async def answer(spec: str) -> Tensor:
        with personality.using(spec):
            await asyncio.sleep(0)
            return await asyncio.to_thread(tiny_llama.generate, IDS, **GREEDY)

    async def all_at_once() -> list[Tensor]:
        return await asyncio.gather(*map(answer, specs))

    with load_personality(tiny_llama, None, adapter) as personality:
        together = asyncio.run(all_at_once())
        for spec, tokens in zip(specs, together, strict=True):
            personality.set(spec)
            assert torch.equal(tiny_llama.generate(IDS, **GREEDY), tokens)
        assert len({tuple(tokens.flatten().tolist()) for tokens in together}) > 3
