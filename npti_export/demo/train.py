"""Trains npti-demo from nothing: ``python -m npti_export.demo.train``, some 45 minutes on two idle cores
(an estimate from single steps; this script has not been run whole).

Batches are a function of the seed and the step alone, and a checkpoint is kept, so a run that was broken off goes on
where it stopped and ends in the same weights. Needs torch 2.9 or later (for its Muon optimizer).
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from npti_export.demo import DEMO_MODEL
from npti_export.demo.corpus import EVERYDAY, STRAY_SHARE, Dialogue, Material, read_material, write_dialogue
from npti_export.demo.tokenizer import CONTEXT, END, PAD, VOCABULARY, train_tokenizer
from npti_export.traits import Pole

Voices = tuple[str, str, Pole]

STEPS = 2300
TOKENS_PER_STEP = 4096
TOKENIZER_DIALOGUES = 20_000
CHECKPOINT_EVERY = 100
# Muon for the matrices inside the layers, AdamW for the embedding and the norms. Learning rates are the peaks of a
# schedule that warms up over 100 steps, falls a little before the voices come in, and from there linearly to 5 %. At
# 8e-3 / 5e-3 the loss falls faster at first, but by step 1,000 every head attends to one token (entropy 0.05) and the
# persona goes unread.
MUON_RATE, ADAM_RATE = 2e-3, 2e-3
WARM_UP, FALL_FROM = 100, 0.370
# Personas and questions are learned too, at a fraction of the weight of answers: which sentences of a persona belong
# together is where the model first meets the poles.
PROMPT_WEIGHT = 0.25
# Once it speaks, the model is also asked for a while whose voice comes next: a linear reading of a middle layer at the
# assistant sign, used in training alone. Without it, after 1,200 steps the first words of an answer hardly depended on
# the persona (0.4 nats between the right one and another). In 300 steps its loss fell from 4.2 to about 1.1 nats: by
# then traits and facets were read from the question, but the pole (0.7 nats) hardly from the persona.
VOICE_FROM, VOICE_UNTIL = 12 / 23, 15 / 23
VOICE_WEIGHT, VOICE_LAYER = 0.3, 3
NO_VOICE = -1
# Until here the trait of an answer is always that of its question, and the model goes by the question alone; from here
# on a persona answers questions of any trait in its own voice, so that the persona decides.
STRAY_FROM = 19 / 23
# Words are left out of two in five prompts, so that the model does not hang on the exact wording of a question.
ROUGH_SHARE, WORD_DROP = 0.4, 0.08


def new_model() -> LlamaForCausalLM:
    """The untrained model: 5.9 M parameters, 6 layers of 704 SwiGLU gates."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


@dataclass(frozen=True)
class Encoded:
    """A dialogue in tokens.

    Args:
        ids: Token ids.
        weights: 1 for the answers and the end sign behind each, PROMPT_WEIGHT for the rest.
        voices: At each assistant sign, the number of the voice that follows; NO_VOICE elsewhere.
    """

    ids: list[int]
    weights: list[float]
    voices: list[int]


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast, voices: Mapping[Voices, int]) -> Encoded:
    """Tokens of a dialogue as its chat template renders it."""
    encoded = Encoded([], [], [])

    def add(text: str, weight: float) -> None:
        piece = tokenizer.encode(text, add_special_tokens=False)
        encoded.ids.extend(piece)
        encoded.weights.extend([weight] * len(piece))
        encoded.voices.extend([NO_VOICE] * len(piece))

    if dialogue.system is not None:
        add(f"<|system|>{dialogue.system}{END}", PROMPT_WEIGHT)
    for exchange in dialogue.exchanges:
        add(f"<|user|>{exchange.question}{END}<|assistant|>", PROMPT_WEIGHT)
        encoded.voices[-1] = voices[exchange.trait, exchange.facet, exchange.pole]
        add(exchange.answer + END, 1.0)
    return encoded


def number_voices(material: Material) -> dict[Voices, int]:
    """A number for every voice: trait, facet (or everyday) and pole."""
    names = [(t, f, p) for t, written in material.traits.items() for f in (*written.facets, EVERYDAY) for p in Pole]
    return {name: number for number, name in enumerate(names)}


def roughen(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Leaves single words out of the prompts of some dialogues; answers stay as they are."""
    if rng.random() > ROUGH_SHARE:
        return dialogue

    def thin(text: str) -> str:
        return " ".join(word for word in text.split() if rng.random() > WORD_DROP) or text

    exchanges = tuple(replace(exchange, question=thin(exchange.question)) for exchange in dialogue.exchanges)
    return replace(dialogue, system=dialogue.system and thin(dialogue.system), exchanges=exchanges)


def batch_of(
    material: Material, tokenizer: PreTrainedTokenizerFast, seed: str, stray_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, weights and voices, int64, float32 and int64 [rows, length], right-padded, TOKENS_PER_STEP in all."""
    rng = random.Random(seed)
    voices = number_voices(material)
    drawn = [encode(roughen(write_dialogue(material, rng, stray_share), rng), tokenizer, voices) for _ in range(160)]
    drawn.sort(key=lambda encoded: len(encoded.ids))
    first = rng.randrange(len(drawn) - 16)
    rows = drawn[first : first + 16]
    for encoded in drawn[first + 16 :]:
        if (len(rows) + 1) * len(encoded.ids) > TOKENS_PER_STEP:
            break
        rows.append(encoded)
    length = min(CONTEXT, max(len(encoded.ids) for encoded in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    weights = torch.zeros(len(rows), length)
    spoken = torch.full((len(rows), length), NO_VOICE)
    for row, encoded in enumerate(rows):
        end = len(encoded.ids)
        ids[row, :end] = torch.tensor(encoded.ids[:length])
        weights[row, :end] = torch.tensor(encoded.weights[:length])
        spoken[row, :end] = torch.tensor(encoded.voices[:length])
    return ids, weights, spoken


@dataclass(frozen=True)
class Losses:
    """Of one batch, in nats.

    Args:
        tokens: Weighted mean cross-entropy over all tokens but padding.
        answers: Mean over answer tokens.
        voices: Mean cross-entropy of the voice at the assistant signs.
    """

    tokens: Tensor
    answers: float
    voices: Tensor


def losses_of(model: LlamaForCausalLM, reading: nn.Linear, ids: Tensor, weights: Tensor, voices: Tensor) -> Losses:
    """Runs a batch; ``reading`` turns the middle layer's state into a choice among the voices."""
    weights, voices = weights[:, 1:], voices[:, :-1]
    learned, asked = weights > 0, voices != NO_VOICE
    with torch.autocast("cpu", torch.bfloat16):
        output = model.model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=True)
        logits = F.linear(output.last_hidden_state[learned], model.lm_head.weight)
        readings = reading(output.hidden_states[VOICE_LAYER][asked])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    weights = weights[learned]
    return Losses(
        (losses * weights).sum() / weights.sum(),
        losses[weights == 1].mean().item(),
        F.cross_entropy(readings.float(), voices[asked]),
    )


def rate_at(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step of a run of so many."""
    share = step / steps
    if share < VOICE_FROM:
        return min(1.0, (step + 1) / WARM_UP, 1.0 - (share - FALL_FROM) / 0.389)
    if share < STRAY_FROM:
        return 0.05 + 0.75 * (0.957 - share) / 0.435
    return 0.05 + 0.55 * (1.0 - share) / (1.0 - STRAY_FROM)


def optimizers_of(model: LlamaForCausalLM, reading: nn.Linear) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    others += reading.parameters()
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(steps: int, seed: int, output: Path, work: Path) -> None:
    """Trains for so many steps, going on from a checkpoint in ``work`` if there is one, and writes the model."""
    material = read_material()
    rng = random.Random(f"tokenizer {seed}")
    tokenizer = train_tokenizer(_texts(write_dialogue(material, rng, 0.0)) for _ in range(TOKENIZER_DIALOGUES))
    torch.manual_seed(seed)
    model = new_model()
    reading = nn.Linear(model.config.hidden_size, len(number_voices(material)))
    learner = nn.ModuleList([model, reading])
    optimizers = optimizers_of(model, reading)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    start = _restore(checkpoint, learner, optimizers, seed, steps)
    began, recent = time.monotonic(), math.nan
    for step in range(start, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps) * (
                    MUON_RATE if isinstance(optimizer, torch.optim.Muon) else ADAM_RATE
                )
        stray_share = STRAY_SHARE if step >= STRAY_FROM * steps else 0.0
        losses = losses_of(model, reading, *batch_of(material, tokenizer, f"{seed}:{step}", stray_share))
        loss = losses.tokens
        if VOICE_FROM <= step / steps < VOICE_UNTIL or stray_share:
            loss = loss + VOICE_WEIGHT * losses.voices
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent = losses.answers if math.isnan(recent) else 0.96 * recent + 0.04 * losses.answers
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - began) / (step + 1 - start) * (steps - step - 1)
            figures = f"answers {recent:.3f}  voices {losses.voices.item():.2f}"
            click.echo(f"step {step + 1}/{steps}  {figures}  about {left / 60:.0f} minutes left")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            _keep(checkpoint, learner, optimizers, step + 1, seed, steps)
    save(model, tokenizer, output)
    checkpoint.unlink(missing_ok=True)


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
