"""Dialogues and lone sentences in tokens, side by side: the batches that npti-demo is trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from npti_export.demo.corpus import EVERYDAY, Dialogue, Exchange, Material, write_pair, write_question
from npti_export.demo.tokenizer import CONTEXT, END
from npti_export.traits import TRAITS, Pole

ROWS = 32
# Pairs of dialogues are drawn in pools of eight batches and sorted by length within, so that little is padded. A pair
# stays in one batch: what the two have in common cancels, and the gradient shows what the persona changes.
POOL = 8
# Words are left out of half of the prompts, so that the model does not hang on the exact wording.
ROUGH_SHARE, WORD_DROP = 0.5, 0.1
# Of the lone sentences a batch, so many tell of a persona and so many ask. Every persona sentence comes up about ten
# times in the whole training so, in the dialogues alone but twice to four times.
PERSONA_SENTENCES, QUESTION_SENTENCES = 64, 32
SAYS = {Pole.LOW: 0, None: 1, Pole.HIGH: 2}
NOWHERE = [-1] * (len(TRAITS) + 2)


@dataclass(frozen=True)
class Numbers:
    """Topics, voices (trait, facet and pole), and what a lone sentence tells (a trait's pole) or asks for (a trait's
    facet), numbered."""

    topics: dict[str, int]
    voices: dict[tuple[str, str, Pole], int]
    tellings: dict[tuple[str, Pole | str], int]

    @classmethod
    def of_material(cls, material: Material) -> Numbers:
        """Numbers in the order of the material."""
        names = [(t, f, p) for t, written in material.traits.items() for f in (*written.facets, EVERYDAY) for p in Pole]
        poles: list[tuple[str, Pole | str]] = [(trait, pole) for trait in material.traits for pole in Pole]
        facets = [(trait, facet) for trait, written in material.traits.items() for facet in written.facets]
        return cls(
            {topic["name"]: number for number, topic in enumerate(material.topics)},
            {name: number for number, name in enumerate(names)},
            {name: number for number, name in enumerate([*poles, *facets])},
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
        grounds: What an answer depends on, at the sign before it; NOWHERE at other tokens.
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
        add(exchange.answer + END, True, NOWHERE)
    return encoded


def roughen(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Leaves single words out of the prompts of some dialogues; answers stay as they are."""
    if rng.random() > ROUGH_SHARE:
        return dialogue

    exchanges = tuple(replace(exchange, question=_thin(exchange.question, rng)) for exchange in dialogue.exchanges)
    return replace(dialogue, system=dialogue.system and _thin(dialogue.system, rng), exchanges=exchanges)


def _thin(text: str, rng: random.Random) -> str:
    return " ".join(word for word in text.split() if rng.random() > WORD_DROP) or text


@dataclass(frozen=True)
class Sentences:
    """Lone persona sentences and questions side by side, right-padded with zeros.

    Args:
        ids: Token ids, int64 [rows, length].
        telling: What each tells or asks for, int64 [rows].
    """

    ids: Tensor
    telling: Tensor


@dataclass(frozen=True)
class Batch:
    """Dialogues side by side, right-padded, and lone sentences.

    Args:
        ids: Token ids, int64 [rows, length].
        answer: Whether a token belongs to an answer, bool [rows, length].
        grounds: As of the dialogues, int64 [rows, length, traits + 2].
        sentences: The lone sentences.
    """

    ids: Tensor
    answer: Tensor
    grounds: Tensor
    sentences: Sentences


def batches_of(
    material: Material, tokenizer: PreTrainedTokenizerFast, numbers: Numbers, seed: int, pool: int
) -> list[Batch]:
    """The batches of a pool, in a random order."""
    rng = random.Random(f"{seed}:{pool}")
    pairs = [write_pair(material, rng) for _ in range(ROWS * POOL // 2)]
    encoded = [[encode(roughen(dialogue, rng), tokenizer, numbers) for dialogue in pair] for pair in pairs]
    encoded.sort(key=lambda pair: max(len(row.ids) for row in pair))
    drawn = [row for pair in encoded for row in pair]
    rows = [drawn[first : first + ROWS] for first in range(0, len(drawn), ROWS)]
    rng.shuffle(rows)
    return [pad(dialogues, lone_sentences(material, tokenizer, numbers, rng)) for dialogues in rows]


def lone_sentences(
    material: Material, tokenizer: PreTrainedTokenizerFast, numbers: Numbers, rng: random.Random
) -> Sentences:
    """Persona sentences drawn from all there are, and questions, each behind the sign of its role, words left out."""
    told = [
        (name, pole, sentence)
        for name, written in material.traits.items()
        for pole, parts in written.personas.items()
        for sentence in parts.sketches
    ]
    texts, telling = [], []
    for name, pole, sentence in rng.choices(told, k=PERSONA_SENTENCES):
        texts.append(f"<|system|>{_thin(sentence, rng)}")
        telling.append(numbers.tellings[name, pole])
    for _ in range(QUESTION_SENTENCES):
        name = rng.choice(list(material.traits))
        facet = rng.choice(list(material.traits[name].facets))
        _, question = write_question(material, material.traits[name].facets[facet], rng.choice(material.topics), rng)
        texts.append(f"<|user|>{_thin(question, rng)}")
        telling.append(numbers.tellings[name, facet])
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    ids = torch.zeros(len(pieces), max(map(len, pieces)), dtype=torch.int64)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = torch.tensor(piece)
    return Sentences(ids, torch.tensor(telling))


def pad(rows: list[Encoded], sentences: Sentences) -> Batch:
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
    return Batch(ids, answer, grounds, sentences)
