"""The judge that needs no key and no second model: the unsteered model itself reads the rubric.

Its rating is not what it would write but what it expects: the mean of 1 to 5, each weighted by the probability that the
model gives it as the next token. It is meant for real instruction models, and its word on answers of its own is worth
what its agreement with other judges is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.errors import NptiError
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.judges.rubric import HIGHEST, LOWEST, NUMBER_ALONE, material, rubric
from npti_export.identification.answers import Progress, Prompt, batches_of, context_length, prompt_ids
from npti_export.steering.module import SteeredActivation
from npti_export.steering.personality import Personality
from npti_export.traits import Trait

LEAST_PROBABILITY = 0.01
"""Where the five ratings together have less, the model is not rating, and what it leans to says nothing."""

_SPELLINGS = {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
# How byte-level and SentencePiece tokenizers write a blank and a line feed.
_BLANKS = " \n▁ĠĊ"


class SelfJudge:
    """Rates answers on one criterion from 1 to 5 by the probabilities that the unsteered model gives the ratings.

    Args:
        trait: The trait that the answers are about.
        model: The chat model whose answers are judged.
        tokenizer: Its tokenizer.
        criterion: What is rated: the trait (1 clearly low, 5 clearly high), or how well the answer is written.
        batch_size: Rows of one forward.
        personality: The personality that the model carries, which is off (slot 0) while it judges; None where the
            model carries none.

    Raises:
        NptiError: If the tokenizer has no chat template, or no tokens for the ratings, or the model's context has no
            room for the rubric.
    """

    name = "self"
    lowest = LOWEST
    highest = HIGHEST

    def __init__(
        self,
        trait: Trait,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        criterion: Criterion = "trait",
        batch_size: int = 8,
        personality: Personality | None = None,
    ) -> None:
        self.trait = trait
        self.criterion: Criterion = criterion
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._personality = personality
        self._rubric = f"{rubric(trait, criterion)}\n\n{NUMBER_ALONE}"
        self._tokens = rating_tokens(tokenizer)
        self._blanks = _blanks_before_ratings(tokenizer)
        # One token is for the rating, one for a blank before it.
        self._room = context_length(model) - 2
        if (alone := len(self._row("", ""))) > self._room:
            raise NptiError(
                f"The judge's rubric takes {alone} tokens and the model reads {self._room}; --judge self needs an "
                "instruction model with a longer context."
            )

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Judgement]:
        """Rates every answer.

        Args:
            questions: The questions.
            answers: The answer to each.
            progress: Told how many more are done.

        Returns:
            A judgement for each answer, in the order given, with the five probabilities as its reason. Where they
            together have less than ``LEAST_PROBABILITY``, or the answer is longer than the model's context allows,
            ``score`` is None.

        Raises:
            NptiError: If the model is steered and its personality was not given, or it gives no probabilities.
        """
        pairs = list(zip(questions, answers, strict=True))
        probabilities = self.probabilities(questions, answers, progress)
        return [self._judgement(*pair, row) for pair, row in zip(pairs, probabilities, strict=True)]

    def probabilities(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """The probability of each rating as what the model would write next, float64 [answers, 5].

        All spellings of a rating count: the digit, the digit behind a blank, the word. An answer that is too long for
        the context has nan.
        """
        if self._personality is None and any(isinstance(module, SteeredActivation) for module in self._model.modules()):
            raise NptiError("The model carries a personality, and a judge must be unsteered; unload it first.")
        rows = [self._row(question, answer) for question, answer in zip(questions, answers, strict=True)]
        fitting = [at for at, row in enumerate(rows) if len(row) <= self._room]
        result = np.full((len(rows), 5), np.nan)
        if progress and len(fitting) < len(rows):
            progress(len(rows) - len(fitting))
        with self._personality.disable() if self._personality else nullcontext():
            for numbers in batches_of([rows[at] for at in fitting], self._batch_size):
                places = [fitting[number] for number in numbers]
                batch = [rows[at] for at in places]
                next_token = self._next_token(batch)
                result[places] = self._of_ratings(next_token)
                for blank in self._blanks:  # the digit may come as a second token
                    behind = self._of_ratings(self._next_token([[*row, blank] for row in batch]))
                    result[places] += next_token[:, blank, None] * behind
                if progress:
                    progress(len(places))
        return result

    def _row(self, question: str, answer: str) -> list[int]:
        return prompt_ids(Prompt(material(question, answer), self._rubric), self._tokenizer)

    def _judgement(self, question: str, answer: str, probabilities: NDArray[np.float64]) -> Judgement:
        total = float(probabilities.sum())
        score, reason, failure = None, "", None
        if np.isnan(total):
            failure = f"the answer is too long to be judged: with the rubric it takes more than {self._room} tokens"
        elif total >= LEAST_PROBABILITY:
            score = float((probabilities * np.arange(1, 6)).sum() / total)
            reason = "probabilities of 1 to 5: " + " ".join(f"{value:.3f}" for value in probabilities)
        else:
            failure = f"the model gives no rating: 1 to 5 have a probability of {total:.5f} together"
        return Judgement(question, answer, self.trait.name, self.name, score, reason, failure, self.criterion)

    def _of_ratings(self, next_token: NDArray[np.float64]) -> NDArray[np.float64]:
        """From [rows, vocabulary] to [rows, 5]."""
        return np.stack([next_token[:, tokens].sum(axis=1) for tokens in self._tokens], axis=1)

    def _next_token(self, rows: list[list[int]]) -> NDArray[np.float64]:
        """The probabilities of the next token behind each row, float64 [rows, vocabulary]."""
        longest = max(map(len, rows))
        ids = torch.tensor([[row[0]] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        # `generate` knows for every family where the positions of a row begin, and keeps the last token's logits only.
        with torch.inference_mode():
            output: Any = self._model.generate(  # type: ignore[operator]
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=1,
                pad_token_id=rows[0][0],
                output_logits=True,
                return_dict_in_generate=True,
            )
        probabilities: NDArray[np.float64] = output.logits[0].cpu().double().softmax(-1).numpy()
        if not np.isfinite(probabilities).all():
            raise NptiError(
                "The model gives nan for probabilities, so --judge self cannot read a rating; choose another --dtype."
            )
        return probabilities


def rating_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens that spell each rating, 1 to 5: with and without a blank before it, as a digit and as a word.

    Raises:
        NptiError: If a rating has none.
    """
    found: dict[int, list[int]] = {rating: [] for rating in range(1, 6)}
    for token, number in tokenizer.get_vocab().items():
        if token.strip(_BLANKS).lower() in _SPELLINGS:
            spelled = str(tokenizer.decode([number])).strip().lower()
            if spelled in _SPELLINGS:
                found[_SPELLINGS[spelled]].append(number)
    if not all(found.values()):
        raise NptiError("The tokenizer has no single token for each of 1 to 5, so --judge self cannot read a rating.")
    return [sorted(tokens) for tokens in found.values()]


def _blanks_before_ratings(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a blank that a tokenizer (such as Llama 2's) puts before a digit in place of one token for both."""
    return sorted(set(_first_of_two(tokenizer)))


def _first_of_two(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    for text in ("3", " 3"):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) == 2 and not str(tokenizer.decode(tokens[:1])).strip():
            yield int(tokens[0])
