"""The judge behind OpenAI's chat completions: GPT-4o, or a model of any server that speaks them.

It is blind: it is sent the rubric, a question and an answer, in an order drawn at random, and never who or what wrote
the answer. What it is asked and what it replies is ``rubric`` and ``reply``, how it is asked is ``chat_requests``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from npti_export.errors import NptiError
from npti_export.evaluation.judges.chat_requests import GPT_4O, ChatRequests, Reply, TurnedDownError, UnansweredError
from npti_export.evaluation.judges.cost import Budget, Cost, price, tokens_in
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.judges.judgement_record import Appender, appending, read_record
from npti_export.evaluation.judges.reply import expected_score, read_reply
from npti_export.evaluation.judges.rubric import HIGHEST, LOWEST, REASON_THEN_SCORE, material, rubric
from npti_export.traits import Trait

REPLY_TOKENS = 80
"""What two sentences and a number take, for the estimate."""
GIVE_UP = 5
"""So many questions in a row that the server leaves unanswered, each after all retries, end the run."""


class OpenAIJudge:
    """Rates answers on one criterion from 1 to 5 through OpenAI's chat completions.

    The key comes from ``OPENAI_API_KEY`` and goes nowhere but to the server.

    Args:
        trait: The trait that the answers are about.
        model: The judge model; a dated snapshot, so that scores can be compared later.
        base_url: Another server that speaks chat completions; None takes ``OPENAI_BASE_URL``, else OpenAI.
        record: File of JSON lines in which judgements are kept as they come, so that none is paid for twice, not even
            after a kill; several traits and judges may share one. None keeps nothing.
        concurrency: How many questions are asked at a time.
        criterion: What is rated: the trait (1 clearly low, 5 clearly high), or how well the answer is written.
        seed: Decides the order in which answers are judged.
        budget: What it takes its cost from, before it asks; None limits nothing.

    Raises:
        NptiError: If there is no key for OpenAI, or an argument is unusable.
    """

    lowest = LOWEST
    highest = HIGHEST

    def __init__(
        self,
        trait: Trait,
        model: str = GPT_4O,
        base_url: str | None = None,
        record: Path | None = None,
        concurrency: int = 8,
        *,
        criterion: Criterion = "trait",
        seed: int = 0,
        budget: Budget | None = None,
    ) -> None:
        if concurrency < 1:
            raise NptiError(f"The judge's concurrency is {concurrency}; it must be at least 1.")
        self.trait = trait
        self.model = model
        self.criterion: Criterion = criterion
        self._record = record
        self._concurrency = concurrency
        self._seed = seed
        self._budget = budget
        self._requests = ChatRequests(model, base_url)
        self._rubric = f"{rubric(trait, criterion)}\n\n{REASON_THEN_SCORE}"

    @property
    def name(self) -> str:
        """How the judge is called in judgements and reports."""
        return f"openai:{self.model}"

    def cost(self, questions: Sequence[str], answers: Sequence[str]) -> Cost:
        """What ``judge`` would cost with the same arguments, estimated; what is in the record costs nothing.

        Raises:
            NptiError: If the record cannot be read.
        """
        kept = self._kept()
        pairs = {self._key(q, a): (q, a) for q, a in zip(questions, answers, strict=True)}
        return self._cost_of([pair for key, pair in pairs.items() if key not in kept])

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[Judgement]:
        """Rates every answer; those in the record are not asked about again, and equal ones are asked about once.

        Give it the answers of all methods at once: it shuffles them, so that nothing hangs on when it was asked.

        Args:
            questions: The questions.
            answers: The answer to each.
            progress: Told how many more are done.

        Returns:
            A judgement for each answer, in the order given. Where the judge refused, or its reply could not be read,
            ``score`` is None and ``failure`` says why; that reply was paid for, and is kept too. Where the server gave
            no reply, likewise, but the next run asks again.

        Raises:
            NptiError: If the budget does not allow it, if the server cannot be reached or turns the requests down
                (what is in the record stays there), or if the record cannot be read or written.
        """
        if len(questions) != len(answers):
            raise NptiError(f"There are {len(questions)} questions but {len(answers)} answers; each needs its own.")
        keys = [self._key(question, answer) for question, answer in zip(questions, answers, strict=True)]
        repeats = Counter(keys)
        done = self._kept()
        pairs = zip(questions, answers, strict=True)
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in done}
        if self._budget:
            what = f"{self.name} on {self.trait.name}{' (fluency)' if self.criterion == 'fluency' else ''}"
            self._budget.take(what, self._cost_of(list(missing.values())))
        if progress and (kept := sum(key in done for key in keys)):
            progress(kept)

        def keep(key: str, judgement: Judgement) -> None:
            done[key] = judgement
            if progress:
                progress(repeats[key])

        self._ask_all(missing, keep)
        # The fluency of an answer is one judgement, whichever trait's judge asked for it first.
        return [replace(done[key], trait=self.trait.name) for key in keys]

    def _ask_all(self, missing: dict[str, tuple[str, str]], keep: Callable[[str, Judgement], None]) -> None:
        """Asks in an order drawn at random and hands on each judgement as it comes.

        One reply that never comes is a judgement that failed; a server that replies to nothing is an error.
        """
        order = sorted(missing, key=missing.__getitem__)  # by what is asked: where it is asked changes nothing
        random.Random(f"order {self._seed}").shuffle(order)
        alive, in_a_row, last = False, 0, ""
        with self._appender() as record:
            pool = ThreadPoolExecutor(self._concurrency)
            try:
                futures = {pool.submit(self._ask, key, *missing[key], record): key for key in order}
                for future in as_completed(futures):
                    key = futures[future]
                    try:
                        judgement = future.result()
                        alive, in_a_row = True, 0
                    except TurnedDownError as error:
                        judgement = self._judgement(*missing[key], None, "", str(error))
                        alive, in_a_row = True, 0
                    except UnansweredError as error:
                        judgement = self._judgement(*missing[key], None, "", str(error))
                        last, in_a_row = str(error), in_a_row + 1
                        if in_a_row == GIVE_UP:
                            break
                    keep(key, judgement)
            finally:
                # After an error or Ctrl-C nothing more is asked, but replies under way are paid for: keep them.
                pool.shutdown(cancel_futures=True)
        if in_a_row == GIVE_UP or (missing and not alive):
            kept = f" (what was judged so far is kept in {self._record})" if self._record else ""
            raise NptiError(f"The judge at {self._requests.place} gave up: {last}; try again later{kept}.")

    def _ask(self, key: str, question: str, answer: str, record: Appender | None) -> Judgement:
        reply = self._requests.send(self._rubric, material(question, answer))
        score, reason, failure = _read(reply)
        judgement = self._judgement(question, answer, score, reason, failure)
        if record is not None:
            record.append(key, judgement, reply.text, reply.tokens)
        return judgement

    def _judgement(
        self, question: str, answer: str, score: float | None, reason: str, failure: str | None
    ) -> Judgement:
        return Judgement(question, answer, self.trait.name, self.name, score, reason, failure, self.criterion)

    def _key(self, question: str, answer: str) -> str:
        # The server belongs to it: two servers may give one name to different models.
        asked = [self._requests.place, self.model, self._rubric, question, answer]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _kept(self) -> dict[str, Judgement]:
        return read_record(self._record) if self._record else {}

    @contextmanager
    def _appender(self) -> Iterator[Appender | None]:
        if self._record is None:
            yield None
        else:
            with appending(self._record) as appender:
                yield appender

    def _cost_of(self, pairs: Sequence[tuple[str, str]]) -> Cost:
        if not pairs:
            return Cost()
        read = sum(tokens_in(self._rubric) + tokens_in(material(*pair)) for pair in pairs)
        model = self.model if self._requests.at_openai else ""
        return price(model, len(pairs), read, REPLY_TOKENS * len(pairs))


def _read(reply: Reply) -> tuple[float | None, str, str | None]:
    """Score, reason and failure of a reply: either a score or a failure."""
    if reply.failure:
        return None, "", reply.failure
    try:
        score, reason = read_reply(reply.text)
    except ValueError as error:
        return None, "", str(error)
    return expected_score(score, reply.scored_tokens), reason, None
