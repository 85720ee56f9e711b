"""The dialogues that npti-demo learns from: composed from sentences written for this project.

A dialogue may carry a persona (of one or two traits) and has one to three exchanges. An exchange takes a question of
one facet, or an everyday one, and answers it in one to three sentences at one pole: a stance, a reason, an ending.
All sentences hold slots that are filled from the topic that the question is about, so an answer is on topic.

Dialogues come in pairs. With a persona, both ask the same of a character at either pole: the personas of a pair are
written as opposites (the same waiter, once warm and once cold), so that only what tells the poles apart differs.
Without a persona the answer comes from either pole. Which one is more likely depends on the topic and the trait (a
character likes some things and dreads others), so that greedy decoding too answers as either, about half and half.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar

from npti_export.traits import TRAITS, Pole

T = TypeVar("T")

EVERYDAY = "everyday"
PERSONA_SHARE = 0.6
TWO_TRAIT_SHARE = 0.1
NEUTRAL_SYSTEM_SHARE = 0.35
EVERYDAY_SHARE = 0.12
# Of the questions put to a persona, as many are of any trait: a character answers these in its own voice too, so that
# the persona decides and not the question. Measured: without them the persona went unread.
STRAY_SHARE = 0.45
WRITTEN_SHARE = 0.5
DISPOSITION = 0.65
# How often what comes next is what goes best with what was said. Measured: at 0.55, with stances tied to single topics,
# the model copied topics but hardly read personas after 4 M tokens; what a persona decides was lost in free choices.
# And greedy decoding always says what goes best: at 0.8, a model that had learned all would still have a distinct-2 a
# fifth below that of the training text, at 0.95 a tenth.
PREFERENCE = 0.95
OPENER_SHARE = 0.05
SENTENCE_COUNTS = (1, 2, 2, 2, 3, 3)
EXCHANGE_SHARES = (0.85, 0.12, 0.03)


@dataclass(frozen=True)
class Voice:
    """What somebody at one pole says: first, second and third sentences."""

    stances: tuple[str, ...]
    reasons: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A facet: its questions (situations and questions with slots, and written ones, each with the name of its topic)
    and the voices of both poles."""

    situations: tuple[str, ...]
    questions: tuple[str, ...]
    written: tuple[tuple[str, str], ...]
    voices: dict[Pole, Voice]


@dataclass(frozen=True)
class PersonaParts:
    """What personas of one pole are composed of."""

    descriptions: tuple[str, ...]
    habits: tuple[str, ...]
    details: tuple[str, ...]
    sketches: tuple[str, ...]


@dataclass(frozen=True)
class TraitMaterial:
    """All that was written for one trait."""

    personas: dict[Pole, PersonaParts]
    facets: dict[str, Scene]
    everyday: dict[Pole, Voice]


@dataclass(frozen=True)
class Material:
    """All that was written: topics (slot → words), small talk, openers, neutral system prompts, and the traits."""

    topics: tuple[dict[str, str], ...]
    everyday_questions: tuple[str, ...]
    asks: tuple[str, ...]
    openers: tuple[str, ...]
    neutral_systems: tuple[str, ...]
    traits: dict[str, TraitMaterial]


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, with the name of its topic, and the trait, facet (or ``everyday``) and pole that the
    answer speaks from."""

    question: str
    answer: str
    topic: str
    trait: str
    facet: str
    pole: Pole


@dataclass(frozen=True)
class Dialogue:
    """A system message or none, and the exchanges; ``persona`` holds the poles of the traits of which it tells."""

    system: str | None
    persona: dict[str, Pole]
    exchanges: tuple[Exchange, ...]


def read_material() -> Material:
    """The material as it ships in the package.

    >>> len(read_material().traits)
    5
    """
    folder = files("npti_export.demo") / "dialogues"
    common = json.loads((folder / "common.json").read_text(encoding="utf-8"))
    topics = [json.loads(line) for line in (folder / "topics.jsonl").read_text(encoding="utf-8").splitlines()]
    traits = {}
    for name in TRAITS:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        scenes = {
            facet: Scene(
                tuple(scene["situations"]),
                tuple(scene["questions"]),
                tuple((topic, question) for topic, question in scene.get("written", [])),
                _voices(scene),
            )
            for facet, scene in record["facets"].items()
        }
        personas = {
            pole: PersonaParts(**{part: tuple(lines) for part, lines in record["persona"][pole].items()})
            for pole in Pole
        }
        traits[name] = TraitMaterial(personas, scenes, _voices(record["everyday"]))
    return Material(
        tuple(topics),
        tuple(common["everyday_questions"]),
        tuple(common["asks"]),
        tuple(common["openers"]),
        tuple(common["neutral_systems"]),
        traits,
    )


def write_pair(material: Material, rng: random.Random) -> tuple[Dialogue, Dialogue]:
    """Composes two dialogues: the same one at both poles of a persona, or two without a persona.

    Args:
        material: The sentences to compose from.
        rng: Decides everything; the same state gives the same dialogues.

    >>> material = read_material()
    >>> high, low = next(pair for seed in range(9) if (pair := write_pair(material, random.Random(seed)))[0].persona)
    >>> {trait: pole.opposite for trait, pole in high.persona.items()} == low.persona
    True
    """
    if rng.random() >= PERSONA_SHARE:
        return _without_persona(material, rng), _without_persona(material, rng)
    names = rng.sample(list(material.traits), 2 if rng.random() < TWO_TRAIT_SHARE else 1)
    poles = {name: rng.choice(list(Pole)) for name in names}
    opposite = {name: pole.opposite for name, pole in poles.items()}
    seed = rng.getrandbits(64)
    first, second = (_with_persona(material, side, random.Random(seed)) for side in (poles, opposite))
    return first, second


def write_dialogues(material: Material, rng: random.Random) -> Iterator[Dialogue]:
    """Dialogues without end, pair by pair.

    >>> from itertools import islice
    >>> len(list(islice(write_dialogues(read_material(), random.Random(1)), 5)))
    5
    """
    while True:
        yield from write_pair(material, rng)


def _with_persona(material: Material, poles: dict[str, Pole], rng: random.Random) -> Dialogue:
    return Dialogue(_persona(material, poles, rng), poles, _exchanges(material, poles, rng))


def _without_persona(material: Material, rng: random.Random) -> Dialogue:
    system = rng.choice(material.neutral_systems) if rng.random() < NEUTRAL_SYSTEM_SHARE else None
    return Dialogue(system, {}, _exchanges(material, {}, rng))


def _voices(record: dict[str, dict[str, list[str]]]) -> dict[Pole, Voice]:
    return {
        pole: Voice(tuple(record[pole]["stances"]), tuple(record[pole]["reasons"]), tuple(record[pole]["endings"]))
        for pole in Pole
    }


def _persona(material: Material, poles: dict[str, Pole], rng: random.Random) -> str:
    """One to four sentences in the second person, shared out among the traits."""
    sentences = []
    for number, (name, pole) in enumerate(poles.items()):
        parts = material.traits[name].personas[pole]
        if number == 0 and rng.random() < 0.1:
            sentences.append(f"You are {rng.choice(parts.descriptions)}.")
        else:
            sentences.append(rng.choice(parts.sketches))
        sketches = rng.sample(parts.sketches, rng.choice((0, 1, 1, 2)) if len(poles) == 1 else 1)
        sentences += [sketch for sketch in sketches if sketch not in sentences]
        if rng.random() < 0.15:
            sentences.append(rng.choice(parts.habits + parts.details))
    return " ".join(sentences)


def _exchanges(material: Material, poles: dict[str, Pole], rng: random.Random) -> tuple[Exchange, ...]:
    count = rng.choices((1, 2, 3), EXCHANGE_SHARES)[0]
    return tuple(_exchange(material, poles, rng) for _ in range(count))


def _exchange(material: Material, poles: dict[str, Pole], rng: random.Random) -> Exchange:
    """A question, and the answer of the persona's trait, or of the question's where there is no persona."""
    topic = rng.choice(material.topics)
    asked_trait = trait = rng.choice(list(poles or material.traits))
    if poles and rng.random() < STRAY_SHARE:
        asked_trait = rng.choice(list(material.traits))
    if rng.random() < EVERYDAY_SHARE:
        facet, question = EVERYDAY, _fill(rng.choice(material.everyday_questions), topic)
    else:
        facet = rng.choice(list(material.traits[asked_trait].facets))
        topic, question = write_question(material, material.traits[asked_trait].facets[facet], topic, rng)
        if asked_trait != trait:
            facet = list(material.traits[trait].facets)[_draw(topic["category"], trait) % len(TRAITS[trait].facets)]
    pole = poles.get(trait) or _disposition(topic["name"], trait, rng)
    written = material.traits[trait]
    voice = written.everyday[pole] if facet == EVERYDAY else written.facets[facet].voices[pole]
    # A generator of its own: what is said must not change what is asked next, else a pair would drift apart.
    answer = _answer(material, voice, topic, random.Random(rng.getrandbits(64)))
    return Exchange(question, answer, topic["name"], trait, facet, pole)


def _disposition(topic: str, trait: str, rng: random.Random) -> Pole:
    """The pole of somebody without a persona: of the topics about half lean to either pole of each trait."""
    leaning = Pole.HIGH if _draw(topic, trait) % 2 else Pole.LOW
    return leaning if rng.random() < DISPOSITION else leaning.opposite


def write_question(
    material: Material, scene: Scene, topic: dict[str, str], rng: random.Random
) -> tuple[dict[str, str], str]:
    """A question about the topic, or a written one about its own."""
    if scene.written and rng.random() < WRITTEN_SHARE:
        name, question = rng.choice(scene.written)
        return next(topic for topic in material.topics if topic["name"] == name), question
    if rng.random() < 0.65:
        return topic, _fill(f"{rng.choice(scene.situations)} {rng.choice(material.asks)}", topic)
    return topic, _fill(rng.choice(scene.questions), topic)


def _answer(material: Material, voice: Voice, topic: dict[str, str], rng: random.Random) -> str:
    """A stance that goes with the kind of topic, most often a reason that goes with the stance, sometimes an ending.

    Where the stance does not name the topic, a reason does.
    """
    sentences = [_prefer(voice.stances, topic["category"], rng)]
    length = _prefer(SENTENCE_COUNTS, sentences[0], rng)
    if "{" not in sentences[0]:
        naming = tuple(reason for reason in voice.reasons if "{" in reason)
        sentences.append(_prefer(naming or voice.reasons, sentences[-1], rng))
    elif length > 1:
        sentences.append(_prefer(voice.reasons, sentences[-1], rng))
    if length > 2:
        sentences.append(_prefer(voice.endings, sentences[-1], rng))
    filled = [_fill(sentence, topic) for sentence in sentences]
    if rng.random() < OPENER_SHARE:
        first = filled[0]
        if not re.match(r"I\b", first):
            first = first[0].lower() + first[1:]
        filled[0] = f"{rng.choice(material.openers)} {first}"
    return " ".join(filled)


def _prefer(items: tuple[T, ...], key: str, rng: random.Random) -> T:
    """One of the items, most often the one that the key points at."""
    if rng.random() < PREFERENCE:
        return items[_draw(key, str(items[0])) % len(items)]
    return rng.choice(items)


def _draw(*key: str) -> int:
    """A number that depends on the words alone (Python's own hash differs from run to run)."""
    return zlib.crc32("\x00".join(key).encode()) >> 3


def _fill(sentence: str, topic: dict[str, str]) -> str:
    filled = re.sub(r"\{(\w+)\}", lambda slot: topic[slot[1]], sentence)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), filled)
