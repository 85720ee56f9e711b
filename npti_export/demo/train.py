"""Trains npti-demo from nothing: ``python -m npti_export.demo.train``, about an hour on two idle cores.

Batches are a function of the seed and the step alone, and a checkpoint is kept, so a run that was broken off goes on
where it stopped and ends in the same weights.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from npti_export.demo import DEMO_MODEL
from npti_export.demo.batches import POOL, Batch, Numbers, batches_of
from npti_export.demo.corpus import Dialogue, read_material, write_dialogue
from npti_export.demo.muon import Muon
from npti_export.demo.tokenizer import CONTEXT, END, PAD, VOCABULARY, train_tokenizer
from npti_export.traits import TRAITS

STEPS = 3700
TOKENIZER_DIALOGUES = 20_000
CHECKPOINT_EVERY = 100
# Muon for the matrices inside the layers, AdamW for the embedding and the norms. At 8e-3 / 5e-3 the loss falls faster
# at first, but by step 1,000 every head attends to one token (entropy 0.05) and the persona goes unread.
MUON_RATE, ADAM_RATE = 3e-3, 3e-3
# Shares of the peak at steps, straight lines between. After 2,000 steps the loss still fell steadily and persona and
# topic were still being learned, so the rate stays where it is for a while before it goes down.
RATES = ((0, 0.01), (99, 1.0), (600, 1.0), (2000, 0.428), (3000, 0.428), (3700, 0.02))
# In training alone, linear layers read at every token of an answer what it depends on: from the state behind layer 2
# what the persona says of each trait, and the topic; from the one behind layer 3 the voice. Without them, after 1,000
# steps the model had learned sentences but not to look back: the right persona and the opposite one gave the same loss
# within 0.01 nats, and topics were mixed up. Read at the assistant sign alone, the persona was there (0.7 to 0.9 of the
# shipped poles), but the words behind it made no use of it.
MIDDLE_LAYER, VOICE_LAYER = 2, 3
READING_WEIGHT = 0.5
# From this step on the first words of an answer weigh more: they decide what is said, and are few among many that
# follow from them. Measured at step 1,000: the voice was read (2.0 nats for the right pole, 3.8 for the other), but the
# first word still cost the same with the right persona and the opposite one (3.52 and 3.54 nats).
OPENING_FROM = 1100
OPENING, OPENING_WEIGHT = 6, 6.0


def new_model() -> LlamaForCausalLM:
    """The untrained model: 3.1 M parameters, 4 layers of 768 SwiGLU gates."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


class Readings(nn.Module):
    """Linear readings of states within the model, in training alone.

    Args:
        hidden: Width of the states.
        numbers: What there is to read.
    """

    def __init__(self, hidden: int, numbers: Numbers) -> None:
        super().__init__()
        self.persona = nn.Linear(hidden, 3 * len(TRAITS))
        self.topic = nn.Linear(hidden, len(numbers.topics))
        self.voice = nn.Linear(hidden, len(numbers.voices))

    def forward(self, states: tuple[Tensor, ...], grounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropies of persona, topic and voice at the tokens of answers.

        Args:
            states: Of every layer, float32 [rows, length, hidden].
            grounds: As of a batch, int64 [rows, length, traits + 2].
        """
        here = grounds[..., 0] >= 0
        middle, behind, grounds = states[MIDDLE_LAYER][here], states[VOICE_LAYER][here], grounds[here]
        persona = F.cross_entropy(self.persona(middle).view(-1, 3), grounds[:, : len(TRAITS)].flatten())
        topic = F.cross_entropy(self.topic(middle), grounds[:, -2])
        return persona, topic, F.cross_entropy(self.voice(behind), grounds[:, -1])


@dataclass(frozen=True)
class Losses:
    """Of one batch, mean cross-entropies in nats: over answer tokens, and of what is read at them."""

    answers: Tensor
    persona: Tensor
    topic: Tensor
    voice: Tensor


def losses_of(model: LlamaForCausalLM, readings: Readings, batch: Batch, opening_weight: float) -> Losses:
    """Runs a batch; ``opening_weight`` is that of the first tokens of each answer, the others weigh 1."""
    learned = batch.answer[:, 1:]
    output = model.model(input_ids=batch.ids[:, :-1], use_cache=False, output_hidden_states=True)
    logits = F.linear(output.last_hidden_state[learned], model.lm_head.weight)
    losses = F.cross_entropy(logits, batch.ids[:, 1:][learned], reduction="none")
    weights = torch.where(openings_of(batch.answer)[:, 1:][learned], opening_weight, 1.0)
    answers = (losses * weights).sum() / weights.sum()
    return Losses(answers, *readings(output.hidden_states, batch.grounds[:, :-1]))


def openings_of(answer: Tensor) -> Tensor:
    """Which tokens are among the first OPENING ones of an answer, bool [rows, length].

    Args:
        answer: Which tokens belong to answers, bool [rows, length].

    >>> openings_of(torch.tensor([[False] + [True] * 8])).int().tolist()
    [[0, 1, 1, 1, 1, 1, 1, 0, 0]]
    """
    places = torch.arange(answer.shape[1])
    before = torch.where(answer, -1, places).cummax(1).values
    return answer & (places - before <= OPENING)


def rate_at(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step of a run of so many.

    >>> [round(rate_at(step, STEPS), 3) for step in (0, 99, 600, 2600, 3699)]
    [0.01, 1.0, 1.0, 0.428, 0.021]
    """
    at, shares = zip(*RATES, strict=True)
    return float(np.interp(step * STEPS / steps, np.array(at), np.array(shares)))


def optimizers_of(model: LlamaForCausalLM, readings: Readings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    others += readings.parameters()
    return [
        Muon(matrices, lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(steps: int, seed: int, output: Path, work: Path) -> None:
    """Trains for so many steps, going on from a checkpoint in ``work`` if there is one, and writes the model."""
    material = read_material()
    rng = random.Random(f"tokenizer {seed}")
    tokenizer = train_tokenizer(_texts(write_dialogue(material, rng)) for _ in range(TOKENIZER_DIALOGUES))
    torch.manual_seed(seed)
    model = new_model()
    numbers = Numbers.of_material(material)
    readings = Readings(model.config.hidden_size, numbers)
    learner = nn.ModuleList([model, readings])
    optimizers = optimizers_of(model, readings)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    start = _restore(checkpoint, learner, optimizers, seed, steps)
    began, recent = time.monotonic(), {name: Recent() for name in ("answers", "persona", "topic", "voice")}
    for step in range(start, steps):
        if step == start or step % POOL == 0:
            batches = batches_of(material, tokenizer, numbers, seed, step // POOL)
        for optimizer, peak in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_at(step, steps)
        opening_weight = OPENING_WEIGHT if step >= OPENING_FROM else 1.0
        losses = losses_of(model, readings, batches[step % POOL], opening_weight)
        read = losses.persona + losses.topic + losses.voice
        (losses.answers + READING_WEIGHT * read).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, mean in recent.items():
            mean.add(getattr(losses, name))
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - began) / (step + 1 - start) * (steps - step - 1)
            figures = "  ".join(f"{name} {mean.mean:.3f}" for name, mean in recent.items())
            click.echo(f"step {step + 1}/{steps}  {figures}  about {left / 60:.0f} minutes left")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            _keep(checkpoint, learner, optimizers, step + 1, seed, steps)
    save(model, tokenizer, output)
    checkpoint.unlink(missing_ok=True)


class Recent:
    """A running mean over about the last 25 losses."""

    mean = math.nan

    def add(self, loss: Tensor) -> None:
        """Takes one more loss in."""
        self.mean = loss.item() if math.isnan(self.mean) else 0.96 * self.mean + 0.04 * loss.item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes the model folder in bfloat16 as ``AutoModelForCausalLM.from_pretrained`` reads it."""
    model.bfloat16()
    generation: Any = model.generation_config
    generation.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    generation.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    generation.max_new_tokens = 120
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _texts(dialogue: Dialogue) -> str:
    return "\n".join([dialogue.system or "", *(f"{e.question}\n{e.answer}" for e in dialogue.exchanges)])


def _keep(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, seed: int, steps: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "plan": [seed, steps],
    }
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def _restore(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], seed: int, steps: int) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["plan"] != [seed, steps]:
        raise click.ClickException(f"{path} belongs to another seed or number of steps; remove it to start anew.")
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    click.echo(f"going on from step {state['step']}")
    return int(state["step"])


@click.command()
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=DEMO_MODEL, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/npti-demo"), show_default=True)
def main(steps: int, seed: int, output: Path, work: Path) -> None:
    """Train npti-demo on the dialogues of this package."""
    train(steps, seed, output, work)


if __name__ == "__main__":
    main()
