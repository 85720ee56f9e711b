"""The methods that are held side by side: what each of them asks, and what steers the model meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.placebo import placebo_of
from npti_export.identification.answers import Prompt
from npti_export.identification.elicit import Transcript
from npti_export.traits import Term, Trait
from npti_export.traits.material import Persona

UNSTEERED = "unsteered"
ADAPTER = "adapter"
PLACEBO = "placebo"
PLAIN = "plain prompt"
PERSONA = "persona prompt"
FEW_SHOT = "few-shot prompt"
BOTH = "adapter + persona prompt"
RESIDUAL_ALONE = "residual alone"
AGAINST = "against"
LORA = "lora"
METHODS = (UNSTEERED, ADAPTER, PLACEBO, PLAIN, PERSONA, FEW_SHOT, BOTH, RESIDUAL_ALONE, AGAINST, LORA)
"""All methods, in the order of the tables."""
HAVE_A_DIAL = (ADAPTER, RESIDUAL_ALONE, AGAINST)
"""Those that are measured at several doses."""
SHOTS = 3
"""Exchanges in character that stand before the question."""


@dataclass(frozen=True)
class Method:
    """How a model is brought to speak from one pole.

    Args:
        name: One of :data:`METHODS`.
        system: Texts for the system's message, of which one is drawn for each question; none is no message.
        shots: Exchanges that stand before the question.
        steering: An adapter that holds the personality; None leaves the model as it is.
        strength: The dial on it; None where nothing steers.
        lora: A PEFT folder that is put on the model.
    """

    name: str
    system: tuple[str, ...] = ()
    shots: tuple[tuple[str, str], ...] = ()
    steering: PersonalityAdapter | None = None
    strength: float | None = None
    lora: Path | None = None

    def prompts(self, questions: Sequence[str], seed: int) -> list[Prompt]:
        """One prompt a question; which persona a question gets depends on nothing but question and seed."""
        drawn = drawn_personas(self.system, questions, seed) if self.system else [None] * len(questions)
        return [Prompt(question, persona, self.shots) for question, persona in zip(questions, drawn, strict=True)]


@dataclass(frozen=True)
class Rivals:
    """What is held against an adapter on one trait, where it is there.

    Args:
        transcripts: Of identification, from which the shots of the few-shot prompt are drawn.
        residual: The residual mean difference alone, its layer and dose found on questions held back.
        against: Another adapter.
        lora: A PEFT folder for this pole.
    """

    transcripts: tuple[Transcript, ...] = ()
    residual: PersonalityAdapter | None = None
    against: PersonalityAdapter | None = None
    lora: Path | None = None


def drawn_personas(texts: Sequence[str], questions: Sequence[str], seed: int) -> list[str]:
    """One of the texts for each question."""
    return [random.Random(f"prompt {seed} {question}").choice(texts) for question in questions]


def methods_of(
    term: Term, described: Trait, adapter: PersonalityAdapter, personas: Sequence[Persona], rivals: Rivals, seed: int
) -> tuple[Method, ...]:
    """The methods of one personality, as far as there is what they need, in the order of the tables.

    Args:
        term: The personality.
        described: Its trait, whose description is the plain prompt.
        adapter: Holds it.
        personas: Of its trait.
        rivals: What it is held against.
        seed: Decides the placebo's neurons and which shots are taken.

    Raises:
        NptiError: If there is no persona of the pole, or an adapter does not hold the trait.
    """
    trait, pole, strength = term.trait, term.pole, term.strength
    of_pole = tuple(persona.text for persona in personas if (persona.trait, persona.pole) == (trait, pole))
    if not of_pole:
        raise NptiError(f"{trait}{pole.sign}: there is no persona of its pole among {len(personas)}; it is needed.")
    for held in (adapter, rivals.residual, rivals.against):
        if held is not None:
            held.personality(str(term))
    methods = [
        Method(UNSTEERED),
        Method(ADAPTER, steering=adapter, strength=strength),
        Method(PLACEBO, steering=placebo_of(adapter, trait, seed), strength=strength),
        Method(PLAIN, (f"You are {described.describe(pole)}.",)),
        Method(PERSONA, of_pole),
    ]
    if shots := _shots(rivals.transcripts, term, seed):
        methods.append(Method(FEW_SHOT, shots=shots))
    methods.append(Method(BOTH, of_pole, steering=adapter, strength=strength))
    if rivals.residual is not None:
        methods.append(Method(RESIDUAL_ALONE, steering=rivals.residual, strength=1.0))
    if rivals.against is not None:
        methods.append(Method(AGAINST, steering=rivals.against, strength=1.0))
    if rivals.lora is not None:
        methods.append(Method(LORA, lora=rivals.lora))
    return tuple(methods)


def _shots(transcripts: Sequence[Transcript], term: Term, seed: int) -> tuple[tuple[str, str], ...]:
    """Exchanges in character of the pole that ended by themselves."""
    whole = [t for t in transcripts if (t.trait, t.pole) == (term.trait, term.pole) and t.finished and t.answer]
    if len(whole) < SHOTS:
        return ()
    return tuple((t.question, t.answer) for t in random.Random(f"shots {seed}").sample(whole, SHOTS))
