"""A made-up evaluation with everything in it that a report can show; the same for the same arguments."""

from __future__ import annotations

import numpy as np

from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.results import (
    Agreement,
    CurvePoint,
    Difference,
    DoseCurve,
    Evaluation,
    Fluency,
    JudgeSettings,
    MethodResult,
    PersonalityResult,
    Rating,
    SeedResult,
    Settings,
    Style,
)
from npti_export.identification.answers import Decoding
from npti_export.traits import Pole

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
GAINS = {
    "unsteered": 0.0,
    "adapter": 0.42,
    "placebo": 0.01,
    "plain prompt": 0.15,
    "persona prompt": 0.33,
    "few-shot prompt": 0.2,
    "adapter + persona prompt": 0.5,
    "residual alone": 0.36,
}
HOSTILE = "<script>alert('x')</script> \"quoted\" & $x^2$ 😀"
"""An answer as a model may give it."""


def made_evaluation(traits: tuple[str, ...] = TRAITS, questions: int = 6, seed: int = 0) -> Evaluation:
    """Every pole of the traits, all methods, two judges, curves, bleed, and the three further sections."""
    rng = np.random.default_rng(seed)
    names = ("local", "openai:judge")
    personalities = tuple(_personality(rng, trait, pole, traits, questions, names) for trait in traits for pole in Pole)
    judges = (
        JudgeSettings("local", "trait", 0.0, 1.0, dict.fromkeys(traits, 0.97)),
        JudgeSettings("openai:judge", "trait", 1.0, 5.0),
        JudgeSettings("openai:judge", "fluency", 1.0, 5.0),
    )
    decoding = Decoding(max_new_tokens=400, repetition_penalty=1.15)
    asked = (decoding, questions, 4, seed, judges, None)
    settings = Settings("tests/tiny-chat", "adapters/tiny", *asked, {"torch": "2.13.0"}, "npti-export eval")
    seeds = tuple(
        SeedResult(number, f"{trait}+", around(0.4 + number / 50), around(1.2))
        for number in range(3)
        for trait in traits
    )
    agreement = (Agreement(names, "trait", 0.71, 0.66, 2 * questions), Agreement(names, "fluency", None, None, 0))
    return Evaluation(settings, personalities, seeds, agreement, _sections(rng, traits))


def around(mean: float, width: float = 0.05) -> Estimate:
    return Estimate(mean, mean - width, mean + width)


def _personality(rng, trait: str, pole: Pole, traits, questions: int, judges) -> PersonalityResult:
    sign = 1 if pole is Pole.HIGH else -1
    asked = tuple(f"Question {number} on {trait}: what would you do?" for number in range(questions))
    facets = tuple(("first", "second")[number % 2] for number in range(questions))
    methods = tuple(_method(rng, name, trait, sign, traits, asked, judges) for name in GAINS)
    differences = tuple(
        Difference("adapter", name, around(GAINS["adapter"] - gain), matched, 0.8 if matched else None, 1.2)
        for name, gain in GAINS.items()
        if name != "adapter"
        for matched in (False, True)
    )
    curves = tuple(
        _curve(name, gain * (1 if sign > 0 else 0.7)) for name, gain in (("adapter", 0.42), ("residual alone", 0.36))
    )
    return PersonalityResult(trait, pole, asked, facets, methods, differences, curves)


def _method(rng, name: str, trait: str, sign: int, traits, asked, judges) -> MethodResult:
    gain = GAINS[name] * rng.uniform(0.7, 1.1)
    answers = [f"{name} says about {question[:10]} " + "very much " * int(rng.integers(2, 30)) for question in asked]
    answers[0] = HOSTILE if name == "adapter" else answers[0]
    ratings = []
    for judge, lowest, highest in zip(judges, (0.0, 1.0), (1.0, 5.0), strict=True):
        span = highest - lowest
        centre = lowest + span * (0.5 + sign * gain)
        scores = np.clip(rng.normal(centre, 0.1 * span, len(asked)), lowest, highest)
        kept: list[float | None] = [float(score) for score in scores]
        failures: list[str | None] = [None] * len(asked)
        if judge == "openai:judge":
            kept[-1], failures[-1] = None, "refused"
        mean, effect = around(float(scores.mean())), None if name == "unsteered" else around(gain * span)
        reasons = ("It says so.",) * len(asked)
        ratings.append(Rating(judge, "trait", tuple(kept), reasons, tuple(failures), mean, 0.49, effect))
    fours, nothing = (4.0,) * len(asked), ("",) * len(asked)
    ratings.append(Rating(judges[1], "fluency", fours, nothing, (None,) * len(asked), around(4.0), 0.1, None))
    ratio = around(1.0 + gain / 2)
    fluency = Fluency((2.0,) * len(asked), ratio, (1.9,) * len(asked), ratio, around(0.02, 0.01), 0.3, 0.7, 0.05)
    style = Style(around(41.5), around(0.1), around(1.2), around(0.04))
    bleed = {other: around(sign * (gain if other == trait else rng.normal(0, 0.08))) for other in traits}
    bleed = {} if name == "unsteered" else bleed
    strength = 1.0 if name in ("adapter", "placebo", "residual alone") else None
    return MethodResult(name, strength, tuple(answers), tuple(ratings), fluency, style, bleed)


def _curve(name: str, gain: float) -> DoseCurve:
    points = []
    for strength in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0):
        effect = gain * (np.tanh(1.6 * strength) - 0.35 * max(0.0, strength - 1.5))
        width = 0.02 + 0.05 * strength
        ratio = around(float(np.exp(gain * strength**2)), width)
        points.append(CurvePoint(strength, around(float(effect), width), ratio, (0.5,), (2.0,)))
    return DoseCurve(name, tuple(points), 0.83, 2.0)


def _sections(rng, traits) -> dict:
    personalities = [f"{trait}{sign}" for trait in traits for sign in "+-"]
    estimate = {"mean": 3.4, "low": 3.1, "high": 3.7}
    scale = {"mean": estimate, "percentile": 62.0, "items": 24}
    reports = [
        {
            "personality": name,
            "traits": dict.fromkeys(traits, scale),
            "facets": {f"{trait}.first": scale | {"items": 4} for trait in traits},
            "on_options": 0.64,
        }
        for name in ("unsteered", *personalities)
    ]
    scores = [
        {
            "personality": name,
            "task": "parity",
            "metric": "acc,none",
            "documents": 200,
            "value": 0.61,
            "error": 0.034,
            "change": None if name == "unsteered" else {"mean": -1.5, "low": -4.0, "high": 1.0},
        }
        for name in ("unsteered", *personalities)
    ]
    poles = {
        name: {
            "method": "hybrid" if name.endswith("+") else "npti",
            "moved": rng.integers(0, 300, 12).tolist(),
            "capped": rng.integers(0, 90, 12).tolist(),
            "residual": [4] if name.endswith("+") else [],
        }
        for name in personalities
    }
    items = {"inventory": "items.csv", "sha256": "0" * 64, "items": 120, "norms": "people"}
    return {
        "inventory": items | {"reports": reports},
        "capability": {"made_with": "lm-eval 0.4.13", "scores": scores},
        "neurons": {"layers": 12, "personalities": poles},
    }
