"""The local judge: a text classifier trained on transcripts, which carry their pole by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from npti_export.errors import NptiError
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.identification.answers import Progress
from npti_export.identification.elicit import Transcript
from npti_export.traits import Pole

FOLDS = 5
# Words and pairs of words, log term counts; L2 strength 10 keeps few-shot training sets from shrinking to 0.5.
INVERSE_PENALTY = 10.0


@dataclass(frozen=True)
class LocalJudge:
    """Scores answers by how likely they come from the high end of a trait, 0 to 1.

    Args:
        trait: The trait that it knows.
        classifier: The trained classifier.
        auc: Area under the ROC curve, cross-validated with all answers to a question in the same fold.
        questions: The questions of its training answers; it refuses to score answers to them.
    """

    trait: str
    classifier: Pipeline
    auc: float
    questions: frozenset[str]

    lowest = 0.0
    highest = 1.0
    name = "local"
    criterion: ClassVar[Criterion] = "trait"

    @classmethod
    def train(cls, transcripts: Sequence[Transcript]) -> LocalJudge:
        """Trains a judge on transcripts of both poles of one trait.

        Args:
            transcripts: From identification, at least five questions.

        Raises:
            NptiError: If a pole is missing, there are too few questions, or the answers hold no words.
        """
        answers = [transcript.answer for transcript in transcripts]
        high = np.array([transcript.pole is Pole.HIGH for transcript in transcripts])
        questions = [transcript.question for transcript in transcripts]
        if len(set(questions)) < FOLDS or high.all() or not high.any():
            raise NptiError(
                f"The local judge needs answers of both poles to at least {FOLDS} questions; "
                f"{len(transcripts)} transcripts to {len(set(questions))} questions were found."
            )
        if not any(map(new_classifier()[0].build_analyzer(), answers)):
            raise NptiError(
                f"The local judge needs words to go by, and none of the {len(answers)} answers holds one; use a model "
                "that answers."
            )
        folds = GroupKFold(FOLDS)
        scores = cross_val_predict(new_classifier(), answers, high, groups=questions, cv=folds, method="predict_proba")
        auc = float(roc_auc_score(high, scores[:, 1]))
        return cls(transcripts[0].trait, new_classifier().fit(answers, high), auc, frozenset(questions))

    def scores(self, answers: Sequence[str]) -> NDArray[np.float64]:
        """How likely each answer comes from the high end, float64 [answers]."""
        return np.asarray(self.classifier.predict_proba(list(answers))[:, 1], dtype=np.float64)

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Judgement]:
        """Scores answers to questions that it was not trained on.

        Args:
            questions: The questions.
            answers: The answer to each.
            progress: Told how many more are done.

        Raises:
            NptiError: If it was trained on answers to one of the questions.
        """
        if known := self.questions & set(questions):
            raise NptiError(
                f"The local judge was trained on answers to {min(known)!r} and must not score it; use other questions."
            )
        scores = self.scores(answers)
        if progress:
            progress(len(scores))
        return [
            Judgement(question, answer, self.trait, self.name, float(score), "", None)
            for question, answer, score in zip(questions, answers, scores, strict=True)
        ]


def new_classifier() -> Pipeline:
    """TF-IDF of words and pairs of words, then logistic regression."""
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, lowercase=True, token_pattern=r"[\w']+|[!?]"),
        LogisticRegression(C=INVERSE_PENALTY, max_iter=1000),
    )
