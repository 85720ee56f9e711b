"""The local judge: folds grouped by question, and no score for what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from npti_export.errors import NptiError
from npti_export.evaluation.judges.local_judge import LocalJudge, new_classifier
from npti_export.identification.elicit import Transcript
from npti_export.traits import Pole

WORDS = {Pole.HIGH: "dream invent wander colour", Pole.LOW: "count file repeat grey"}


def transcript(question: str, pole: Pole, answer: str) -> Transcript:
    return Transcript("openness", pole, question, "You.", answer, (), True)


def telling(questions: int) -> list[Transcript]:
    """Answers whose words tell the pole, in an order and number that tell nothing."""
    return [
        transcript(f"Question {at}?", pole, " ".join(WORDS[pole].split()[at % 3 :]) + f" about thing{at}")
        for at in range(questions)
        for pole in Pole
    ]


def memorable(questions: int) -> list[Transcript]:
    """Three answers a pole and question, of words that occur nowhere else and turn round at the next question.

    A judge that saw the question in training knows them all; one that did not can only guess. Shuffled, so that folds
    cut by place alone would hold the same questions.
    """
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    transcripts = [
        transcript(f"Question {at}?", pole, word)
        for at in range(questions)
        for pole in Pole
        for word in ["".join(rng.choice(letters, 8))] * 3
    ]
    return [transcripts[at] for at in rng.permutation(len(transcripts))]


def test_it_tells_poles_apart_and_says_how_well() -> None:
    judge = LocalJudge.train(telling(12))
    assert judge.auc == 1.0
    assert (judge.trait, judge.name, judge.lowest, judge.highest) == ("openness", "local", 0.0, 1.0)
    questions = ["New one?", "Another?"]
    high, low = judge.judge(questions, ["I dream and invent.", "I count and file!"])
    assert high.score is not None
    assert low.score is not None
    assert 0.0 <= low.score < 0.3 < 0.7 < high.score <= 1.0
    assert [(j.question, j.trait, j.judge, j.failure) for j in (high, low)] == [
        (question, "openness", "local", None) for question in questions
    ]


def test_answers_without_a_difference_are_not_told_apart() -> None:
    same = [transcript(f"Q{at}?", pole, f"I like thing{at % 3} very much.") for at in range(15) for pole in Pole]
    assert LocalJudge.train(same).auc == pytest.approx(0.5, abs=0.02)


def test_no_fold_holds_a_question_of_the_training_folds() -> None:
    transcripts = memorable(20)
    answers = [t.answer for t in transcripts]
    high = [t.pole is Pole.HIGH for t in transcripts]
    seen = new_classifier().fit(answers, high).predict_proba(answers)[:, 1]
    assert (np.sign(seen - 0.5) == np.where(high, 1, -1)).all()  # known by heart where they were seen
    assert LocalJudge.train(transcripts).auc == pytest.approx(0.5, abs=0.15)


def test_it_refuses_to_score_what_it_was_trained_on() -> None:
    judge = LocalJudge.train(telling(6))
    with pytest.raises(NptiError, match=r"^The local judge was trained on answers to 'Question 3\?' and must not"):
        judge.judge(["New?", "Question 3?"], ["I dream.", "I count."])


def test_training_gives_the_same_judge_again() -> None:
    first, second = (LocalJudge.train(telling(10)) for _ in range(2))
    answers = ["I dream of grey.", "", "Something else!"]
    np.testing.assert_array_equal(first.scores(answers), second.scores(answers))
    assert first.auc == second.auc


@pytest.mark.parametrize(
    ("transcripts", "message"),
    [
        (telling(4), "both poles to at least 5 questions; 8 transcripts to 4 questions were found"),
        ([t for t in telling(8) if t.pole is Pole.LOW], "answers of both poles"),
        ([], "0 transcripts to 0 questions"),
        ([transcript(f"Q{at}?", pole, "…") for at in range(6) for pole in Pole], "none of the 12 answers holds one"),
    ],
    ids=["few", "one pole", "none", "no words"],
)
def test_what_it_cannot_learn_from(transcripts: list[Transcript], message: str) -> None:
    with pytest.raises(NptiError, match=message):
        LocalJudge.train(transcripts)
