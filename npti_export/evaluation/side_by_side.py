"""The evaluation: personalities under all methods, the same questions to each, rated by the same judges.

First everything is asked, then each judge sees all answers of a trait at once, then the figures are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from npti_export.errors import NptiError
from npti_export.evaluation.answering import Asker, library_versions
from npti_export.evaluation.compare import Scores
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.judges.judges_agree import agreements
from npti_export.evaluation.methods import (
    ADAPTER,
    HAVE_A_DIAL,
    PERSONA,
    UNSTEERED,
    Method,
    drawn_personas,
)
from npti_export.evaluation.protocol import Judge
from npti_export.evaluation.results import (
    Evaluation,
    JudgeSettings,
    PersonalityResult,
    Settings,
)
from npti_export.evaluation.scoring import Answered, differences, dose_curve, method_result, scores_of
from npti_export.identification.answers import Answer
from npti_export.traits import Pole, Term
from npti_export.traits.material import Question

DOSES = (0.5, 0.75, 1.5, 2.0)
"""Strengths at which dials are measured beside the recommended one, as multiples of it."""


@dataclass(frozen=True)
class Subject:
    """One personality and the methods it is evaluated under.

    Args:
        term: The personality.
        methods: As ``methods.methods_of`` gives them: the unsteered model and the persona prompt are among them.
    """

    term: Term
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method:
        """The method of that name."""
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True)
class Exam:
    """What all personalities are asked, and who rates it.

    Args:
        questions: Of each trait, by name; seen neither by identification nor by a judge's training.
        judges: Of each trait, by name; the first that rates the trait is the one whose scores the tables show.
        bleed_questions: How many questions of each other trait are asked too; 0 measures no bleed.
        doses: Multiples of the recommended dose that dials are measured at too.
        seed: Decides which persona a question gets, and resamples.
    """

    questions: Mapping[str, Sequence[Question]]
    judges: Mapping[str, Sequence[Judge]]
    bleed_questions: int = 0
    doses: tuple[float, ...] = ()
    seed: int = 0

    def texts(self, trait: str) -> list[str]:
        """The questions of a trait."""
        return [question.text for question in self.questions[trait]]

    def elsewhere(self, trait: str) -> dict[str, list[str]]:
        """The questions of other traits that bleed of one is measured on."""
        if not self.bleed_questions:
            return {}
        return {other: self.texts(other)[: self.bleed_questions] for other in self.questions if other != trait}


def evaluate(asker: Asker, subjects: Sequence[Subject], exam: Exam, adapter: str = "", command: str = "") -> Evaluation:
    """Asks the same questions by every method and rates the answers.

    A judgement that failed is left out of means and differences, and counted; it is never given a score.

    Args:
        asker: The model.
        subjects: What is evaluated.
        exam: What is asked, and who rates.
        adapter: What the adapter is called, for the record.
        command: What made this, for the record.

    Raises:
        NptiError: If there are no questions or no judge of a trait, an adapter does not fit, or the judge gave no
            score under some method.
    """
    _check(subjects, exam)
    said = _ask_all(asker, subjects, exam)
    judged = _judge_all(said, exam)
    personalities = tuple(_personality(asker, subject, exam, said, judged) for subject in subjects)
    judges: dict[tuple[str, Criterion], JudgeSettings] = {}
    for trait in dict.fromkeys(subject.term.trait for subject in subjects):
        for judge in exam.judges[trait]:
            key = (judge.name, judge.criterion)
            auc = getattr(judge, "auc", None)
            before = judges[key].auc if key in judges else {}
            judges[key] = JudgeSettings(
                *key, judge.lowest, judge.highest, before if auc is None else before | {trait: auc}
            )
    settings = Settings(
        model=asker.base_model.id,
        adapter=adapter,
        decoding=asker.decoding,
        questions=max(len(result.questions) for result in personalities),
        bleed_questions=exam.bleed_questions,
        seed=exam.seed,
        judges=tuple(judges.values()),
        positions=asker.positions,
        versions=library_versions(),
        command=command,
    )
    return Evaluation(settings, personalities, agreement=agreements(settings.judges, personalities))


def count_answers(subjects: Sequence[Subject], exam: Exam) -> int:
    """How many answers :func:`evaluate` asks for."""
    total = sum(map(len, exam.questions.values())) if exam.bleed_questions else 0
    total += 0 if exam.bleed_questions else sum(len(exam.questions[name]) for name in _own_traits(subjects))
    for subject in subjects:
        own = len(exam.questions[subject.term.trait])
        others = sum(map(len, exam.elsewhere(subject.term.trait).values()))
        steered = [method for method in subject.methods if method.name != UNSTEERED]
        total += len(steered) * (own + others)
        total += sum(method.name in HAVE_A_DIAL for method in steered) * len(exam.doses) * own
    return total


_Place = tuple[str, str, float | None, str]
"""Where answers belong: personality, method, strength, and whose questions were asked."""
_Said = dict[_Place, list[Answer]]
_Judged = dict[_Place, dict[tuple[str, Criterion], list[Judgement]]]
NOBODY = ""
"""The personality of the unsteered model, whose answers all share."""


def _own_traits(subjects: Sequence[Subject]) -> list[str]:
    return list(dict.fromkeys(subject.term.trait for subject in subjects))


def _check(subjects: Sequence[Subject], exam: Exam) -> None:
    traits = list(exam.questions) if exam.bleed_questions else _own_traits(subjects)
    for trait in traits:
        if not exam.questions.get(trait):
            raise NptiError(f"There are no test questions for {trait}; give some.")
        if not any(judge.criterion == "trait" for judge in exam.judges.get(trait, ())):
            raise NptiError(f"There is no judge of {trait}; one that rates the trait is needed.")
    if len({str(subject.term) for subject in subjects}) != len(subjects) or not subjects:
        raise NptiError(f"{len(subjects)} personalities were given; at least one, and none twice, is needed.")


def _personality_name(term: Term) -> str:
    return f"{term.trait}{term.pole.sign}"


def _ask_all(asker: Asker, subjects: Sequence[Subject], exam: Exam) -> _Said:
    said: _Said = {}
    unsteered = subjects[0].method(UNSTEERED)
    for trait in exam.questions if exam.bleed_questions else _own_traits(subjects):
        answers = asker.ask(unsteered, subjects[0].term, exam.texts(trait), exam.seed)
        said[NOBODY, UNSTEERED, None, trait] = answers
    for subject in subjects:
        trait, name = subject.term.trait, _personality_name(subject.term)
        asked = {trait: exam.texts(trait)} | exam.elsewhere(trait)
        for method in subject.methods:
            if method.name == UNSTEERED:
                continue
            answers = asker.ask(method, subject.term, [text for texts in asked.values() for text in texts], exam.seed)
            for of_trait, texts in asked.items():
                said[name, method.name, method.strength, of_trait] = answers[: len(texts)]
                answers = answers[len(texts) :]
            if method.name in HAVE_A_DIAL and method.strength is not None:
                for dose in exam.doses:
                    dosed = replace(method, strength=dose * method.strength)
                    place = (name, method.name, dosed.strength, trait)
                    said[place] = asker.ask(dosed, subject.term, asked[trait], exam.seed)
    return said


def _judge_all(said: _Said, exam: Exam) -> _Judged:
    """Each judge sees all answers to a trait's questions in one call; equal ones are shown once."""
    judged: _Judged = {place: {} for place in said}
    for trait in dict.fromkeys(place[3] for place in said):
        places = [place for place in said if place[3] == trait]
        for at, judge in enumerate(exam.judges[trait]):
            # What is said to another trait's questions is only rated for bleed, by the main judge.
            main = judge is next(one for one in exam.judges[trait] if one.criterion == "trait")
            of_judge = [place for place in places if main or _is_own(place)]
            shown = [
                (question, answer.text)
                for place in of_judge
                for question, answer in zip(exam.texts(trait), said[place], strict=False)
            ]
            once = list(dict.fromkeys(shown))
            said_of = dict(zip(once, judge.judge([q for q, _ in once], [a for _, a in once]), strict=True))
            key = (judge.name, judge.criterion)
            if any(key in judged[place] for place in of_judge):
                raise NptiError(f"Two judges of {trait} are called {judge.name} (number {at + 1}); each needs a name.")
            for place in of_judge:
                pairs = zip(exam.texts(trait), said[place], strict=False)
                judged[place][key] = [said_of[question, answer.text] for question, answer in pairs]
    return judged


def _is_own(place: _Place) -> bool:
    personality, _, _, trait = place
    return personality in (NOBODY, f"{trait}+", f"{trait}-")


def _personality(asker: Asker, subject: Subject, exam: Exam, said: _Said, judged: _Judged) -> PersonalityResult:
    term = subject.term
    trait, name = term.trait, _personality_name(term)
    texts = exam.texts(trait)
    personas = drawn_personas(subject.method(PERSONA).system, texts, exam.seed)

    def answered(personality: str, method: str, strength: float | None) -> Answered:
        place = (personality, method, strength, trait)
        answers = said[place]
        nll, in_character = (
            answer_nll(asker.model, asker.tokenizer, texts, answers, asker.decoding.batch_size, given)
            for given in (None, personas)
        )
        elsewhere = {
            other: _main_scores(judged[personality, method, strength, other])[: len(asked)]
            for other, asked in exam.elsewhere(trait).items()
            if (personality, method, strength, other) in judged  # only the recommended dose was asked there
        }
        return Answered(answers, judged[place], nll, in_character, elsewhere)

    direction = 1.0 if term.pole is Pole.HIGH else -1.0
    default = {UNSTEERED: answered(NOBODY, UNSTEERED, None)}
    default |= {m.name: answered(name, m.name, m.strength) for m in subject.methods if m.name != UNSTEERED}
    unsteered, in_character = default[UNSTEERED], default[PERSONA].nll_in_character
    methods = tuple(
        method_result(m.name, m.strength, default[m.name], unsteered, in_character, trait, direction, exam.seed)
        for m in subject.methods
    )
    dials: dict[str, dict[float, Answered]] = {}
    for method in subject.methods:
        if method.name in HAVE_A_DIAL and method.strength is not None and exam.doses:
            dials[method.name] = {method.strength: default[method.name]} | {
                dose * method.strength: answered(name, method.name, dose * method.strength) for dose in exam.doses
            }
    return PersonalityResult(
        trait,
        term.pole,
        tuple(texts),
        tuple(question.facet for question in exam.questions[trait]),
        methods,
        differences(default, dials.get(ADAPTER, {}), direction, exam.seed),
        tuple(dose_curve(method, doses, unsteered, direction, exam.seed) for method, doses in dials.items()),
    )


def _main_scores(judged: Mapping[tuple[str, Criterion], Sequence[Judgement]]) -> Scores:
    return scores_of(next(said for (_, criterion), said in judged.items() if criterion == "trait"))
