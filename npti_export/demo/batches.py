"""Dialogues in tokens, side by side: the batches that npti-demo is trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from npti_export.demo.corpus import EVERYDAY, Dialogue, Exchange, Material, write_dialogue
from npti_export.demo.tokenizer import CONTEXT, END
from npti_export.traits import TRAITS, Pole

ROWS = 32
# Dialogues are drawn in pools of eight batches and sorted by length within, so that little is padded.
POOL = 8
# Words are left out of two in five prompts, so that the model does not hang on the exact wording.
ROUGH_SHARE, WORD_DROP = 0.4, 0.08
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
    batches = [pad(drawn[first : first + ROWS]) for first in range(0, len(drawn), ROWS)]
    rng.shuffle(batches)
    return batches


def pad(rows: list[Encoded]) -> Batch:
    """Puts dialogues side by side, cut at the context."""
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
