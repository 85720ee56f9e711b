"""The dialogues that npti-demo learns from: composed from sentences written for this project.

A dialogue may carry a persona (of one or two traits) and has one to three exchanges. An exchange takes a question of
one facet, or an everyday one, and answers it in one to three sentences at one pole: a stance, a reason, an ending.
All sentences hold slots that are filled from the topic that the question is about, so an answer is on topic.

Without a persona the answer comes from either pole. Which one is more likely depends on the kind of topic and the trait
(a character likes some things and dreads others), so that greedy decoding too answers as either, about half and half.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar

from npti_export.traits import TRAITS, Pole

T = TypeVar("T")

EVERYDAY = "everyday"
PERSONA_SHARE = 0.55
TWO_TRAIT_SHARE = 0.15
NEUTRAL_SYSTEM_SHARE = 0.35
EVERYDAY_SHARE = 0.2
STRAY_SHARE = 0.5
OWN_TRAIT_SHARE = 0.9
DISPOSITION = 0.75
# How often the next sentence is one of the few that go best with what was said. Measured: at 0.55, with stances tied to
# single topics, the model had copied topics but hardly read personas after 4 M tokens; what a persona decides was lost
# in the noise of free choices.
PREFERENCE = 0.85
OPENER_SHARE = 0.25
SENTENCE_SHARES = (0.15, 0.5, 0.35)
EXCHANGE_SHARES = (0.7, 0.2, 0.1)


@dataclass(frozen=True)
class Voice:
    """What somebody at one pole says: first, second and third sentences."""

    stances: tuple[str, ...]
    reasons: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A facet: its questions and the voices of both poles."""

    situations: tuple[str, ...]
    questions: tuple[str, ...]
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
    """A question and its answer, with the trait, facet (or ``everyday``) and pole that the answer speaks from."""

    question: str
    answer: str
    trait: str
    facet: str
    pole: Pole


@dataclass(frozen=True)
class Dialogue:
    """A system message or none, and the exchanges; ``persona`` tells whether the system message is a persona."""

    system: str | None
    persona: bool
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
            facet: Scene(tuple(scene["situations"]), tuple(scene["questions"]), _voices(scene))
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


def write_dialogue(material: Material, rng: random.Random, stray_share: float = STRAY_SHARE) -> Dialogue:
    """Composes one dialogue.

    Args:
        material: The sentences to compose from.
        rng: Decides everything; the same state gives the same dialogue.
        stray_share: With a persona, the share of questions that may be of any trait while the answer stays with the
            persona's own.

    >>> material = read_material()
    >>> write_dialogue(material, random.Random(1)) == write_dialogue(material, random.Random(1))
    True
    """
    if rng.random() < PERSONA_SHARE:
        names = rng.sample(list(material.traits), 2 if rng.random() < TWO_TRAIT_SHARE else 1)
        poles = {name: rng.choice(list(Pole)) for name in names}
        system: str | None = _persona(material, poles, rng)
    else:
        poles = {}
        system = rng.choice(material.neutral_systems) if rng.random() < NEUTRAL_SYSTEM_SHARE else None
    count = rng.choices((1, 2, 3), EXCHANGE_SHARES)[0]
    return Dialogue(system, bool(poles), tuple(_exchange(material, poles, stray_share, rng) for _ in range(count)))


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
        if number == 0 and rng.random() < 0.4:
            sentences.append(f"You are {rng.choice(parts.descriptions)}.")
        else:
            sentences.append(rng.choice(parts.sketches))
        sketches = rng.sample(parts.sketches, rng.choice((0, 1, 1, 2)) if len(poles) == 1 else 1)
        sentences += [sketch for sketch in sketches if sketch not in sentences]
        if rng.random() < 0.3:
            sentences.append(rng.choice(parts.habits + parts.details))
    return " ".join(sentences)


def _exchange(material: Material, poles: dict[str, Pole], stray_share: float, rng: random.Random) -> Exchange:
    topic = rng.choice(material.topics)
    trait = rng.choice(list(poles)) if poles and rng.random() < OWN_TRAIT_SHARE else rng.choice(list(material.traits))
    pole = poles.get(trait) or _disposition(material, topic["category"], trait, rng)
    written = material.traits[trait]
    facet = EVERYDAY
    if rng.random() < EVERYDAY_SHARE:
        question = rng.choice(material.everyday_questions)
        voice = written.everyday[pole]
        second = _second_trait_voice(material, poles, trait, rng) or voice
    else:
        facet = rng.choice(list(written.facets))
        asked = written.facets[facet]
        if stray_share and trait in poles and rng.random() < stray_share:
            facet = list(written.facets)[_draw(topic["category"], trait) % len(written.facets)]
            asked = rng.choice(list(rng.choice(list(material.traits.values())).facets.values()))
        question = _question(material, asked, rng)
        voice = second = written.facets[facet].voices[pole]
    answer = _answer(material, voice, second, topic, rng)
    return Exchange(_fill(question, topic), answer, trait, facet, pole)


def _disposition(material: Material, category: str, trait: str, rng: random.Random) -> Pole:
    """The pole of somebody without a persona: of the kinds of topic half lean to either pole of each trait."""
    categories = sorted({topic["category"] for topic in material.topics})
    number = categories.index(category) + list(material.traits).index(trait)
    leaning = Pole.HIGH if number % 2 else Pole.LOW
    return leaning if rng.random() < DISPOSITION else leaning.opposite


def _second_trait_voice(material: Material, poles: dict[str, Pole], trait: str, rng: random.Random) -> Voice | None:
    """In small talk a persona of two traits speaks of both: the reason then comes from the other trait."""
    others = [name for name in poles if name != trait]
    if not others or trait not in poles:
        return None
    other = rng.choice(others)
    return material.traits[other].everyday[poles[other]]


def _question(material: Material, scene: Scene, rng: random.Random) -> str:
    if rng.random() < 0.65:
        return f"{rng.choice(scene.situations)} {rng.choice(material.asks)}"
    return rng.choice(scene.questions)


def _answer(material: Material, voice: Voice, second: Voice, topic: dict[str, str], rng: random.Random) -> str:
    """A stance that goes with the kind of topic, most often a reason that goes with it, sometimes an ending."""
    length = rng.choices((1, 2, 3), SENTENCE_SHARES)[0]
    sentences = [_prefer(voice.stances, topic["category"], rng)]
    if length > 1:
        sentences.append(_prefer(second.reasons, sentences[-1], rng))
    if length > 2:
        sentences.append(_prefer(second.endings, sentences[-1], rng))
    filled = [_fill(sentence, topic) for sentence in sentences]
    if rng.random() < OPENER_SHARE:
        first = filled[0]
        if not re.match(r"I\b", first):
            first = first[0].lower() + first[1:]
        filled[0] = f"{rng.choice(material.openers)} {first}"
    return " ".join(filled)


def _prefer(items: tuple[T, ...], key: str, rng: random.Random) -> T:
    """One of the items, most often one of the three that the key points at."""
    if rng.random() < PREFERENCE:
        start = _draw(key, str(items[0]))
        return items[(start + rng.choice((0, 0, 1, 5))) % len(items)]
    return rng.choice(items)


def _draw(*key: str) -> int:
    """A number that depends on the words alone (Python's own hash differs from run to run)."""
    return zlib.crc32("\x00".join(key).encode()) >> 3


def _fill(sentence: str, topic: dict[str, str]) -> str:
    filled = re.sub(r"\{(\w+)\}", lambda slot: topic[slot[1]], sentence)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), filled)
