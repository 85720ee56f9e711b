"""What an evaluation found, as plain records.

Nothing here measures anything. A report, a picture and a model card are made from these records alone;
``results_file`` writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from npti_export.evaluation.intervals import Estimate
from npti_export.evaluation.judges.judgement import Criterion
from npti_export.identification.answers import Decoding
from npti_export.traits import Pole

VERSION = 1
"""Of the layout of the file."""


@dataclass(frozen=True)
class JudgeSettings:
    """Who rated, on which scale.

    Args:
        name: Such as ``local`` or ``openai:gpt-4o-2024-08-06``.
        criterion: What it rates: ``trait`` or ``fluency``.
        lowest: Lowest score.
        highest: Highest score.
        auc: How well the local judge tells the poles apart, cross-validated, by trait; empty for others.
    """

    name: str
    criterion: Criterion
    lowest: float
    highest: float
    auc: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What was asked of which model, and how.

    Args:
        model: Id of the base model.
        adapter: Id or folder of the adapter.
        decoding: The same for every method.
        questions: Test questions a trait.
        bleed_questions: Questions of each other trait that bleed was measured on; 0 where it was not.
        seed: Decides placebo, drawn personas, shots and bootstrap resamples.
        judges: The first of the trait criterion is the one whose scores the tables show.
        positions: Which tokens are steered, where it is not the adapter's own choice.
        versions: Of the libraries.
        command: The command that made this.
    """

    model: str
    adapter: str
    decoding: Decoding
    questions: int
    bleed_questions: int
    seed: int
    judges: tuple[JudgeSettings, ...]
    positions: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Rating:
    """What one judge says of all answers of one method, on one criterion.

    Args:
        judge: Its name.
        criterion: ``trait`` (the personality's own trait) or ``fluency``.
        scores: One a question, on the judge's own scale; None where the judge failed.
        reasons: Why, one a question, in the judge's words; empty where it gives none.
        failures: Why there is no score, one a question; None where there is one.
        mean: Of the scores; None where every judgement failed.
        variance: Of the scores over questions (n - 1 in the denominator); None for fewer than two.
        effect: Paired difference from the unsteered model, for a trait in the direction of the pole.
    """

    judge: str
    criterion: Criterion
    scores: tuple[float | None, ...]
    reasons: tuple[str, ...]
    failures: tuple[str | None, ...]
    mean: Estimate | None
    variance: float | None
    effect: Estimate | None

    @property
    def failed(self) -> int:
        """Judgements that the judge did not give."""
        return sum(score is None for score in self.scores)


@dataclass(frozen=True)
class Fluency:
    """How well a method's answers are written, without a judge.

    Args:
        nll: Mean negative log-likelihood of each answer under the unsteered model, nats a token.
        ratio: Perplexity under the unsteered model, divided by that of the unsteered answers.
        nll_in_character: The same of each answer under the model given the personas of that pole.
        ratio_in_character: Perplexity there, divided by that of the answers of the persona prompt.
        repeated: Share of an answer's four-word runs that stood in it before.
        distinct_1: Different words by words, over all answers together.
        distinct_2: Different pairs of words by pairs.
        unfinished: Share of answers that broke off at the largest number of tokens.
    """

    nll: tuple[float, ...]
    ratio: Estimate
    nll_in_character: tuple[float, ...]
    ratio_in_character: Estimate
    repeated: Estimate
    distinct_1: float
    distinct_2: float
    unfinished: float


@dataclass(frozen=True)
class Style:
    """Shortcuts of style that fool judges, each a mean over answers.

    Args:
        words: Words an answer.
        emoji: Emoji an answer.
        exclamations: Exclamation marks an answer.
        trait_words: Share of answers that name the trait outright (such as "open-minded" for openness).
    """

    words: Estimate
    emoji: Estimate
    exclamations: Estimate
    trait_words: Estimate


@dataclass(frozen=True)
class MethodResult:
    """How one method did on one personality.

    Args:
        method: Such as ``unsteered``, ``adapter``, ``placebo`` or ``persona prompt``; see ``methods.METHODS``.
        strength: The dial where the method steers; None where it does not.
        answers: One a question of the personality's trait.
        ratings: One a judge and criterion.
        fluency: Without a judge.
        style: Shortcuts.
        bleed: Change of every trait's score towards its high end, in the main judge's units, each on that trait's own
            questions; empty where it was not measured.
    """

    method: str
    strength: float | None
    answers: tuple[str, ...]
    ratings: tuple[Rating, ...]
    fluency: Fluency
    style: Style
    bleed: dict[str, Estimate] = field(default_factory=dict)

    def rating(self, judge: str | None = None, criterion: Criterion = "trait") -> Rating | None:
        """What a judge says; the first one of that criterion unless it is named. None where it did not rate."""
        return next((r for r in self.ratings if r.criterion == criterion and judge in (None, r.judge)), None)


@dataclass(frozen=True)
class Difference:
    """One method held against another, paired over questions.

    Args:
        method: The one.
        against: The other.
        effect: How much larger the first one's effect is.
        matched: Whether the first one was dialled to the cost of the other; then:
        strength: That dial.
        ratio: The perplexity ratio that both have there; of the first one, where the other's lies beyond its doses.
    """

    method: str
    against: str
    effect: Estimate
    matched: bool = False
    strength: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """What one dose did.

    Args:
        strength: The dial; 1 is the recommended dose.
        effect: Main judge's paired difference from the unsteered model in the direction of the pole.
        ratio: Perplexity ratio under the unsteered model.
        scores: Of the main judge, one a question; None where it failed.
        nll: Of each answer, as in ``Fluency``.
    """

    strength: float
    effect: Estimate
    ratio: Estimate
    scores: tuple[float | None, ...]
    nll: tuple[float, ...]


@dataclass(frozen=True)
class DoseCurve:
    """A method at several doses, ascending; strength 0 is the unsteered model.

    Args:
        method: Which one.
        points: What was measured.
        rank_correlation: Spearman's, of dose and effect up to the largest effect and beyond; None of fewer than three.
        tips_over: Strength from which on more has less effect (the interval of the loss lies below 0); None if none.
    """

    method: str
    points: tuple[CurvePoint, ...]
    rank_correlation: float | None
    tips_over: float | None


@dataclass(frozen=True)
class PersonalityResult:
    """Everything of one pole of one trait.

    Args:
        trait: The trait.
        pole: The pole.
        questions: What was asked.
        facets: Of each question; empty where it is not known.
        methods: In the order of the tables; the first is the unsteered model.
        differences: Of the adapter against every other method, at the default dose and at matched cost.
        curves: Of the methods that have a dial.
    """

    trait: str
    pole: Pole
    questions: tuple[str, ...]
    facets: tuple[str, ...]
    methods: tuple[MethodResult, ...]
    differences: tuple[Difference, ...] = ()
    curves: tuple[DoseCurve, ...] = ()

    @property
    def personality(self) -> str:
        """As a spec, such as ``openness+``."""
        return f"{self.trait}{self.pole.sign}"

    def method(self, name: str) -> MethodResult | None:
        """A method's result; None where it was not asked."""
        return next((result for result in self.methods if result.method == name), None)


@dataclass(frozen=True)
class SeedResult:
    """The adapter made anew with another seed of the identification questions.

    Args:
        seed: Of identification.
        personality: Such as ``openness+``.
        effect: As in ``Rating``, of the main judge.
        ratio: Perplexity ratio.
    """

    seed: int
    personality: str
    effect: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Agreement:
    """How two judges agree on the same answers.

    Args:
        judges: The two names.
        criterion: What they rated.
        alpha: Krippendorff's α for interval data, both scales drawn to 0 to 1; None where it is not defined.
        spearman: Rank correlation; None where it is not defined.
        answers: Rated by both.
    """

    judges: tuple[str, str]
    criterion: Criterion
    alpha: float | None
    spearman: float | None
    answers: int


@dataclass(frozen=True)
class Evaluation:
    """The whole of an evaluation.

    Args:
        settings: What was asked and how.
        personalities: One a pole.
        seeds: The adapter from other seeds of the identification questions; the first is the one in the tables.
        agreement: One a pair of judges and criterion.
        sections: What other measurements add, by name (``inventory``, ``capability``), as JSON.
        version: Of this file's layout.
    """

    settings: Settings
    personalities: tuple[PersonalityResult, ...]
    seeds: tuple[SeedResult, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    sections: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def traits(self) -> tuple[str, ...]:
        """Names, in the order of the personalities."""
        return tuple(dict.fromkeys(result.trait for result in self.personalities))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names, in the order of the tables."""
        return tuple(dict.fromkeys(method.method for result in self.personalities for method in result.methods))

    @property
    def judge(self) -> JudgeSettings:
        """The one whose scores the tables show."""
        return next(judge for judge in self.settings.judges if judge.criterion == "trait")

    def of(self, trait: str, pole: Pole) -> PersonalityResult | None:
        """A personality's results; None where it was not evaluated."""
        return next((r for r in self.personalities if (r.trait, r.pole) == (trait, pole)), None)
