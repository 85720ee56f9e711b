"""Trains npti-demo: ``python -m npti_export.demo.train``, about 40 minutes on two idle cores.

From nothing, or from the weights and tokenizer of an earlier npti-demo (``--start``), which is how the ones that ship
were made.

Batches are a function of the seed and the step alone, and a checkpoint is kept, so a run that was broken off goes on
where it stopped and ends in the same weights.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from npti_export.demo import DEMO_MODEL
from npti_export.demo.batches import POOL, Batch, Numbers, Sentences, batches_of
from npti_export.demo.corpus import Dialogue, read_material, write_dialogues
from npti_export.demo.muon import Muon
from npti_export.demo.tokenizer import CONTEXT, END, PAD, VOCABULARY, read_tokenizer, train_tokenizer
from npti_export.identification.files import file_sha256
from npti_export.traits import TRAITS

Rates = tuple[tuple[int, float], ...]

STEPS = 2000
TOKENIZER_DIALOGUES = 20_000
CHECKPOINT_EVERY = 100
# Muon for the matrices inside the layers, AdamW for the embedding and the norms. At 8e-3 / 5e-3 the loss falls faster
# at first, but by step 1,000 every head attends to one token (entropy 0.05) and the persona goes unread.
MUON_RATE, ADAM_RATE = 3e-3, 3e-3
# Shares of the peak at steps, straight lines between: from nothing, and for a model that speaks already, which half the
# peak leaves what it knows.
FROM_NOTHING: Rates = ((0, 0.01), (99, 1.0), (636, 1.0), (1364, 0.45), (1590, 0.4), (2000, 0.02))
GOING_ON: Rates = ((0, 0.01), (99, 0.5), (900, 0.5), (1500, 0.3), (2000, 0.01))
# In training alone, linear layers read at the sign before an answer what the answer depends on: from the state behind
# layer 2 what the persona says of each trait, and the topic; from the one behind layer 3 the voice. Without them, after
# 1,000 steps the model had learned sentences but not to look back: the right persona and the opposite one gave the same
# loss within 0.01 nats. Read at the words of the answer too, they looked learned soon (0.07 nats), and were not: the
# words themselves give the persona away, and with the opposite persona the reading was nearly as good.
MIDDLE_LAYER, VOICE_LAYER = 2, 3
READING_WEIGHT = 1.0
# The topic counts less: a model that is made to name one of the topics of training takes a new topic for one of them.
TOPIC_WEIGHT = 0.3
# The square of the logarithm of the softmax' denominator is held down, so that logits are about log-probabilities (as
# Devlin et al. trained translation models, 2014). A repetition penalty divides the logits of all that was said before:
# of a likely word log-probabilities leave it as it is, free logits of 10 to 15 took two nats from every "the" and every
# word of the question, and greedy answers lost the topic and then the thread. Measured on a model trained without:
# normalising before the penalty brought back what greedy decoding without any said.
NORMALISER_WEIGHT = 0.05
# The first words of an answer weigh more: they decide what is said, and are few among many that follow from them.
# Measured after 1,000 steps without: the voice was read (2.0 nats for the right pole, 3.8 for the other), but the first
# word still cost the same with the right persona and the opposite one (3.52 and 3.54 nats).
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


def first_layer_of(model: LlamaForCausalLM) -> LlamaModel:
    """The embedding and the first layer of the model, its own parameters, without the norm behind."""
    with torch.device("meta"):
        first = LlamaModel(LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 1}))
    first.embed_tokens, first.layers = model.model.embed_tokens, model.model.layers[:1]
    first.rotary_emb, first.norm = model.model.rotary_emb, nn.Identity()  # type: ignore[assignment]
    return first


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
        self.telling = nn.Linear(hidden, len(numbers.tellings))

    def forward(self, states: tuple[Tensor, ...], grounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropies of persona, topic and voice at the signs before answers.

        Args:
            states: Of every layer, float32 [rows, length, hidden].
            grounds: As of a batch, int64 [rows, length, traits + 2].
        """
        here = grounds[..., 0] >= 0
        middle, behind, grounds = states[MIDDLE_LAYER][here], states[VOICE_LAYER][here], grounds[here]
        persona = F.cross_entropy(self.persona(middle).view(-1, 3), grounds[:, : len(TRAITS)].flatten())
        topic = F.cross_entropy(self.topic(middle), grounds[:, -2])
        return persona, topic, F.cross_entropy(self.voice(behind), grounds[:, -1])

    def tell(self, states: Tensor, sentences: Sentences) -> Tensor:
        """Mean cross-entropy of what lone sentences tell, read from the mean of their states.

        Args:
            states: Behind the first layer, float32 [rows, length, hidden].
            sentences: The sentences, padded with zeros.
        """
        there = (sentences.ids != 0)[..., None]
        return F.cross_entropy(self.telling((states * there).sum(1) / there.sum(1)), sentences.telling)


@dataclass(frozen=True)
class Losses:
    """Of one batch, means in nats: cross-entropies over answer tokens, of what is read before them and of what lone
    sentences tell; ``normaliser`` is the mean square of the logarithm of the softmax' denominator."""

    answers: Tensor
    normaliser: Tensor
    persona: Tensor
    topic: Tensor
    voice: Tensor
    telling: Tensor

    def total(self) -> Tensor:
        """What is made small."""
        read = self.persona + TOPIC_WEIGHT * self.topic + self.voice + self.telling
        return self.answers + NORMALISER_WEIGHT * self.normaliser + READING_WEIGHT * read


def losses_of(model: LlamaForCausalLM, readings: Readings, batch: Batch) -> Losses:
    """Runs a batch; the first tokens of each answer weigh OPENING_WEIGHT, the others 1."""
    learned = batch.answer[:, 1:]
    output = model.model(input_ids=batch.ids[:, :-1], use_cache=False, output_hidden_states=True)
    logits = F.linear(output.last_hidden_state[learned], model.lm_head.weight)
    losses = F.cross_entropy(logits, batch.ids[:, 1:][learned], reduction="none")
    weights = torch.where(openings_of(batch.answer)[:, 1:][learned], OPENING_WEIGHT, 1.0)
    answers = (losses * weights).sum() / weights.sum()
    normaliser = logits.logsumexp(-1).square().mean()
    lone = first_layer_of(model)(input_ids=batch.sentences.ids, use_cache=False).last_hidden_state
    persona, topic, voice = readings(output.hidden_states, batch.grounds[:, :-1])
    return Losses(answers, normaliser, persona, topic, voice, readings.tell(lone, batch.sentences))


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


def rate_at(step: int, steps: int, rates: Rates) -> float:
    """The share of the peak learning rate at a step of a run of so many.

    >>> [round(rate_at(step, STEPS, FROM_NOTHING), 3) for step in (0, 99, 636, 1590, 1999)]
    [0.01, 1.0, 1.0, 0.4, 0.021]
    """
    steps_of, shares = zip(*rates, strict=True)
    return float(np.interp(step * STEPS / steps, np.array(steps_of), np.array(shares)))


def optimizers_of(model: LlamaForCausalLM, readings: Readings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    others += readings.parameters()
    return [
        Muon(matrices, lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(steps: int, seed: int, output: Path, work: Path, start_from: Path | None = None) -> None:
    """Trains for so many steps, going on from a checkpoint in ``work`` if there is one, and writes the model.

    Args:
        steps: How many.
        seed: Decides the dialogues and what is drawn at random.
        output: Folder of the model.
        work: Folder of the checkpoint.
        start_from: Folder of a model whose weights and tokenizer to start from; None starts from nothing.
    """
    material = read_material()
    torch.manual_seed(seed)
    if start_from is None:
        rng = random.Random(f"tokenizer {seed}")
        tokenizer = train_tokenizer(map(_texts, islice(write_dialogues(material, rng), TOKENIZER_DIALOGUES)))
        model = new_model()
    else:
        tokenizer = read_tokenizer(start_from)
        model = LlamaForCausalLM.from_pretrained(start_from, dtype=torch.float32).train()
    rates = FROM_NOTHING if start_from is None else GOING_ON
    numbers = Numbers.of_material(material)
    readings = Readings(model.config.hidden_size, numbers)
    learner = nn.ModuleList([model, readings])
    optimizers = optimizers_of(model, readings)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    plan = [seed, steps, "" if start_from is None else file_sha256(start_from / "model.safetensors")]
    start = _restore(checkpoint, learner, optimizers, plan)
    began, recent = time.monotonic(), {field.name: Recent() for field in fields(Losses)}
    for step in range(start, steps):
        if step == start or step % POOL == 0:
            batches = batches_of(material, tokenizer, numbers, seed, step // POOL)
        for optimizer, peak in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_at(step, steps, rates)
        losses = losses_of(model, readings, batches[step % POOL])
        losses.total().backward()  # type: ignore[no-untyped-call]
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
            _keep(checkpoint, learner, optimizers, step + 1, plan)
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


def _keep(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, plan: list[Any]) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "plan": plan,
    }
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def _restore(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], plan: list[Any]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["plan"] != plan:
        raise click.ClickException(
            f"{path} belongs to another seed, number of steps or model to start from; remove it to start anew."
        )
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    click.echo(f"going on from step {state['step']}")
    return int(state["step"])


@click.command()
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=DEMO_MODEL, show_default=True)
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Start from the weights and tokenizer of this model.",
)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/npti-demo"), show_default=True)
def main(steps: int, seed: int, output: Path, start: Path | None, work: Path) -> None:
    """Train npti-demo on the dialogues of this package."""
    train(steps, seed, output, work, start)


if __name__ == "__main__":
    main()
