"""The evaluation: personalities under all methods, the same questions to each, rated by the same judges.

First everything is asked, then each judge sees all answers of a trait at once, then the figures are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from npti_export.errors import NptiError
from npti_export.evaluation.answering import Asker, library_versions
from npti_export.evaluation.compare import Scores
from npti_export.evaluation.fluency import answer_nll
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.judges.judges_agree import agreements
from npti_export.evaluation.methods import ADAPTER, HAVE_A_DIAL, PERSONA, UNSTEERED, Method, drawn_personas
from npti_export.evaluation.protocol import Judge, Stage, silent
from npti_export.evaluation.results import Evaluation, JudgeSettings, PersonalityResult, Settings
from npti_export.evaluation.scoring import Answered, differences, dose_curve, method_result, scores_of
from npti_export.identification.answers import Answer, Progress
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


def evaluate(
    asker: Asker, subjects: Sequence[Subject], exam: Exam, adapter: str = "", command: str = "", stage: Stage = silent
) -> Evaluation:
    """Asks the same questions by every method and rates the answers.

    A judgement that failed is left out of means and differences, and counted; it is never given a score.

    Args:
        asker: The model.
        subjects: What is evaluated.
        exam: What is asked, and who rates.
        adapter: What the adapter is called, for the record.
        command: What made this, for the record.
        stage: Shows progress: of the answers, of the judgements, of how likely the answers are.

    Raises:
        NptiError: If there are no questions or no judge of a trait, an adapter does not fit, or the judge gave no
            score under some method.
    """
    _check(subjects, exam)
    with stage("answers", count_answers(subjects, exam)) as progress:
        said = _ask_all(asker, subjects, exam, progress)
    shown = _shown(said, exam)
    with stage("judgements", sum(len(one.pairs) for one in shown)) as progress:
        judged = _judge_all(shown, said, exam, progress)
    asked = sum(len(exam.texts(subject.term.trait)) * (1 + len(_own_places(subject, said))) for subject in subjects)
    with stage("likelihood of the answers", 2 * asked) as progress:
        personalities = tuple(_personality(asker, subject, exam, said, judged, progress) for subject in subjects)
    judges: dict[tuple[str, Criterion], JudgeSettings] = {}
    for trait in _own_traits(subjects):
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
    return sum(len(texts) for one in _asked(subjects, exam) for texts in one.texts.values())


_Place = tuple[str, str, float | None, str]
"""Where answers belong: personality, method, strength, and whose questions were asked."""
_Said = dict[_Place, list[Answer]]
_Judged = dict[_Place, dict[tuple[str, Criterion], list[Judgement]]]
NOBODY = ""
"""The personality of the unsteered model, whose answers all share."""


@dataclass(frozen=True)
class _Asked:
    """One method at one strength, and the questions of each trait that it is asked."""

    personality: str
    term: Term
    method: Method
    texts: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Shown:
    """What one judge sees in its one call: the answers of those places, equal ones once."""

    judge: Judge
    places: Sequence[_Place]
    pairs: Sequence[tuple[str, str]]


def _own_traits(subjects: Sequence[Subject]) -> list[str]:
    return list(dict.fromkeys(subject.term.trait for subject in subjects))


def _asked_traits(subjects: Sequence[Subject], exam: Exam) -> list[str]:
    return list(exam.questions) if exam.bleed_questions else _own_traits(subjects)


def _check(subjects: Sequence[Subject], exam: Exam) -> None:
    if len({str(subject.term) for subject in subjects}) != len(subjects) or not subjects:
        raise NptiError(f"{len(subjects)} personalities were given; at least one, and none twice, is needed.")
    for trait in _asked_traits(subjects, exam):
        if not exam.questions.get(trait):
            raise NptiError(f"There are no test questions for {trait}; give some.")
        judges = exam.judges.get(trait, ())
        if not any(judge.criterion == "trait" for judge in judges):
            raise NptiError(f"There is no judge of {trait}; one that rates the trait is needed.")
        [(name, criterion), times] = Counter((judge.name, judge.criterion) for judge in judges).most_common(1)[0]
        if times > 1:
            raise NptiError(f"{times} judges of {trait} ({criterion}) are called {name}; each needs a name of its own.")


def _personality_name(term: Term) -> str:
    return f"{term.trait}{term.pole.sign}"


def _asked(subjects: Sequence[Subject], exam: Exam) -> list[_Asked]:
    """Everything that is asked, in its order; the unsteered model first."""
    nobody = subjects[0]
    unsteered = nobody.method(UNSTEERED)
    asked = [
        _Asked(NOBODY, nobody.term, unsteered, {trait: exam.texts(trait)}) for trait in _asked_traits(subjects, exam)
    ]
    for subject in subjects:
        trait, name = subject.term.trait, _personality_name(subject.term)
        own = {trait: exam.texts(trait)}
        for method in subject.methods:
            if method.name == UNSTEERED:
                continue
            asked.append(_Asked(name, subject.term, method, own | exam.elsewhere(trait)))
            if method.name in HAVE_A_DIAL and method.strength is not None:
                dosed = (replace(method, strength=dose * method.strength) for dose in exam.doses)
                asked += [_Asked(name, subject.term, at_dose, own) for at_dose in dosed]
    return asked


def _ask_all(asker: Asker, subjects: Sequence[Subject], exam: Exam, progress: Progress) -> _Said:
    said: _Said = {}
    for one in _asked(subjects, exam):
        texts = [text for of_trait in one.texts.values() for text in of_trait]
        answers = asker.ask(one.method, one.term, texts, exam.seed, progress)
        for trait, of_trait in one.texts.items():
            said[one.personality, one.method.name, one.method.strength, trait] = answers[: len(of_trait)]
            answers = answers[len(of_trait) :]
    return said


def _shown(said: _Said, exam: Exam) -> list[_Shown]:
    """What each judge of each trait is shown."""
    shown = []
    for trait in dict.fromkeys(place[3] for place in said):
        places = [place for place in said if place[3] == trait]
        main = next(judge for judge in exam.judges[trait] if judge.criterion == "trait")
        for judge in exam.judges[trait]:
            # What is said to another trait's questions is only rated for bleed, by the main judge.
            of_judge = [place for place in places if judge is main or _is_own(place)]
            pairs = dict.fromkeys(pair for place in of_judge for pair in _pairs(place, said, exam))
            shown.append(_Shown(judge, of_judge, list(pairs)))
    return shown


def _judge_all(shown: Sequence[_Shown], said: _Said, exam: Exam, progress: Progress) -> _Judged:
    """Each judge sees all answers to a trait's questions in one call."""
    judged: _Judged = {place: {} for place in said}
    for one in shown:
        judgements = one.judge.judge([q for q, _ in one.pairs], [a for _, a in one.pairs], progress)
        of_pair = dict(zip(one.pairs, judgements, strict=True))
        for place in one.places:
            key = (one.judge.name, one.judge.criterion)
            judged[place][key] = [of_pair[pair] for pair in _pairs(place, said, exam)]
    return judged


def _pairs(place: _Place, said: _Said, exam: Exam) -> list[tuple[str, str]]:
    """Question and answer; of another trait only the first questions were asked."""
    return [(text, answer.text) for text, answer in zip(exam.texts(place[3]), said[place], strict=False)]


def _is_own(place: _Place) -> bool:
    personality, _, _, trait = place
    return personality in (NOBODY, f"{trait}+", f"{trait}-")


def _own_places(subject: Subject, said: _Said) -> list[_Place]:
    """Of the answers to the personality's own questions, but for the unsteered model's."""
    own = (_personality_name(subject.term), subject.term.trait)
    return [place for place in said if (place[0], place[3]) == own]


def _personality(
    asker: Asker, subject: Subject, exam: Exam, said: _Said, judged: _Judged, progress: Progress
) -> PersonalityResult:
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
        progress(2 * len(texts))
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
