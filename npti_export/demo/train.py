"""Trains npti-demo from nothing: ``python -m npti_export.demo.train``, about an hour on two idle cores.

Batches are a function of the seed and the step alone, and a checkpoint is kept, so a run that was broken off goes on
where it stopped and ends in the same weights.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from npti_export.demo import DEMO_MODEL
from npti_export.demo.corpus import EVERYDAY, Dialogue, Exchange, Material, read_material, write_dialogue
from npti_export.demo.muon import Muon
from npti_export.demo.tokenizer import CONTEXT, END, PAD, VOCABULARY, train_tokenizer
from npti_export.traits import TRAITS, Pole

STEPS = 3700
ROWS = 32
# Dialogues are drawn in pools of eight batches and sorted by length within, so that little is padded.
POOL = 8
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
# Words are left out of two in five prompts, so that the model does not hang on the exact wording.
ROUGH_SHARE, WORD_DROP = 0.4, 0.08


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


SAYS = {Pole.LOW: 0, None: 1, Pole.HIGH: 2}
NOWHERE = [-1] * (len(TRAITS) + 2)


@dataclass(frozen=True)
class Numbers:
    """Topics and voices (trait, facet and pole), numbered."""

    topics: dict[str, int]
    voices: dict[tuple[str, str, Pole], int]

    @classmethod
    def of_material(cls, material: Material) -> Numbers:
        """Numbers in the order of the material."""
        names = [(t, f, p) for t, written in material.traits.items() for f in (*written.facets, EVERYDAY) for p in Pole]
        return cls(
            {topic["name"]: number for number, topic in enumerate(material.topics)},
            {name: number for number, name in enumerate(names)},
        )

    def of(self, dialogue: Dialogue, exchange: Exchange) -> list[int]:
        """For each trait whether the persona is low 0, silent 1 or high 2; then the topic and the voice."""
        persona = [SAYS[dialogue.persona.get(trait)] for trait in TRAITS]
        return [*persona, self.topics[exchange.topic], self.voices[exchange.trait, exchange.facet, exchange.pole]]


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
class Encoded:
    """A dialogue in tokens.

    Args:
        ids: Token ids.
        answer: Whether a token belongs to an answer or is the end sign behind one.
        grounds: What each token of an answer and the sign before it depend on; NOWHERE at other tokens.
    """

    ids: list[int]
    answer: list[bool]
    grounds: list[list[int]]


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast, numbers: Numbers) -> Encoded:
    """Tokens of a dialogue as its chat template renders it."""
    encoded = Encoded([], [], [])

    def add(text: str, answer: bool, grounds: list[int]) -> None:
        piece = tokenizer.encode(text, add_special_tokens=False)
        encoded.ids.extend(piece)
        encoded.answer.extend([answer] * len(piece))
        encoded.grounds.extend([grounds] * len(piece))

    if dialogue.system is not None:
        add(f"<|system|>{dialogue.system}{END}", False, NOWHERE)
    for exchange in dialogue.exchanges:
        grounds = numbers.of(dialogue, exchange)
        add(f"<|user|>{exchange.question}{END}", False, NOWHERE)
        add("<|assistant|>", False, grounds)
        add(exchange.answer + END, True, grounds)
    return encoded


def roughen(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Leaves single words out of the prompts of some dialogues; answers stay as they are."""
    if rng.random() > ROUGH_SHARE:
        return dialogue

    def thin(text: str) -> str:
        return " ".join(word for word in text.split() if rng.random() > WORD_DROP) or text

    exchanges = tuple(replace(exchange, question=thin(exchange.question)) for exchange in dialogue.exchanges)
    return replace(dialogue, system=dialogue.system and thin(dialogue.system), exchanges=exchanges)


@dataclass(frozen=True)
class Batch:
    """Dialogues side by side, right-padded.

    Args:
        ids: Token ids, int64 [rows, length].
        answer: Whether a token belongs to an answer, bool [rows, length].
        grounds: As of the dialogues, int64 [rows, length, traits + 2].
    """

    ids: Tensor
    answer: Tensor
    grounds: Tensor


def batches_of(
    material: Material, tokenizer: PreTrainedTokenizerFast, numbers: Numbers, seed: int, pool: int
) -> list[Batch]:
    """The batches of a pool, in a random order."""
    rng = random.Random(f"{seed}:{pool}")
    dialogues = [roughen(write_dialogue(material, rng), rng) for _ in range(ROWS * POOL)]
    drawn = sorted((encode(dialogue, tokenizer, numbers) for dialogue in dialogues), key=lambda row: len(row.ids))
    batches = [_pad(drawn[first : first + ROWS]) for first in range(0, len(drawn), ROWS)]
    rng.shuffle(batches)
    return batches


def _pad(rows: list[Encoded]) -> Batch:
    length = min(CONTEXT, max(len(encoded.ids) for encoded in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    answer = torch.zeros(len(rows), length, dtype=torch.bool)
    grounds = torch.full((len(rows), length, len(NOWHERE)), -1)
    for row, encoded in enumerate(rows):
        end = len(encoded.ids)
        ids[row, :end] = torch.tensor(encoded.ids[:length])
        answer[row, :end] = torch.tensor(encoded.answer[:length])
        grounds[row, :end] = torch.tensor(encoded.grounds[:length])
    return Batch(ids, answer, grounds)


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
