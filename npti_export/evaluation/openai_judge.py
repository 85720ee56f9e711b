"""The judge behind OpenAI's chat completions (GPT-4o, or any server that speaks them): asking and the record.

It is blind: it is sent the rubric, a question and an answer, and never who or what wrote the answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from npti_export.errors import NptiError
from npti_export.evaluation.judgement import Judgement
from npti_export.evaluation.rubric import HIGHEST, LOWEST, RESPONSE_FORMAT, read_reply, rubric, shorten
from npti_export.traits import Trait

SEED = 0
# Two sentences and a number take about 80; the limit ends a small local judge that does not stop. `max_tokens` is the
# spelling that GPT-4o and the other servers share.
MAX_TOKENS = 500

_OPENAI_URL = "https://api.openai.com/v1"
_TURNED_DOWN = (openai.BadRequestError, openai.UnprocessableEntityError)


class OpenAIJudge:
    """Rates answers on one trait from 1 (clearly low) to 5 (clearly high) through OpenAI's chat completions.

    The key comes from ``OPENAI_API_KEY`` and goes nowhere but to the server.

    Args:
        trait: The trait to rate.
        model: The judge model; a dated snapshot, so that scores can be compared later.
        base_url: Another server that speaks chat completions; None takes ``OPENAI_BASE_URL``, else OpenAI.
        record: File of JSON lines in which judgements are kept as they come, so that a killed run goes on where it
            was; several traits and judges may share one. None keeps nothing.
        concurrency: How many questions are asked at a time.

    Raises:
        NptiError: If there is no key for OpenAI, or an argument is unusable.
    """

    lowest = LOWEST
    highest = HIGHEST

    def __init__(
        self,
        trait: Trait,
        model: str = "gpt-4o-2024-08-06",
        base_url: str | None = None,
        record: Path | None = None,
        concurrency: int = 8,
    ) -> None:
        if concurrency < 1:
            raise NptiError(f"The judge's concurrency is {concurrency}; it must be at least 1.")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL
        self.trait = trait
        self.model = model
        self.record = record
        self.concurrency = concurrency
        self._place = _place(url)
        # Local servers want no key, but the client insists on one.
        self._secret = _key(url)
        self._client = openai.OpenAI(api_key=self._secret or "none", base_url=url, max_retries=5, timeout=60.0)
        self._rubric = rubric(trait)
        self._with_schema = True
        self._record_lock = threading.Lock()

    @property
    def name(self) -> str:
        """How the judge is called in judgements and reports."""
        return f"openai:{self.model}"

    def judge(
        self, questions: Sequence[str], answers: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[Judgement]:
        """Rates every answer; those in the record are not asked about again, and equal ones are asked about once.

        Args:
            questions: The questions.
            answers: The answer to each.
            progress: Told how many more are done.

        Returns:
            A judgement for each answer, in the order given; where the judge refused or could not be read, its
            ``score`` is None, its ``failure`` says why, and the next run asks again.

        Raises:
            NptiError: If the server cannot be reached or turns the requests down (what is in the record stays there),
                or if the record cannot be read.
        """
        if len(questions) != len(answers):
            raise NptiError(f"There are {len(questions)} questions but {len(answers)} answers; each needs its own.")
        pairs = list(zip(questions, answers, strict=True))
        keys = [self._key(question, answer) for question, answer in pairs]
        repeats = Counter(keys)
        done = _read_record(self.record) if self.record else {}
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in done}
        if progress and (kept := sum(key in done for key in keys)):
            progress(kept)
        pool = ThreadPoolExecutor(self.concurrency)
        with _appending(self.record) as file:
            try:
                futures = {pool.submit(self._ask, key, q, a, file): key for key, (q, a) in missing.items()}
                for future in as_completed(futures):
                    key = futures[future]
                    done[key] = future.result()
                    if progress:
                        progress(repeats[key])
            finally:
                # After an error or Ctrl-C nothing more is asked, but answers under way are paid for: keep them.
                pool.shutdown(cancel_futures=True)
        return [done[key] for key in keys]

    def _key(self, question: str, answer: str) -> str:
        # The server belongs to it: two servers may give one name to different models.
        asked = [self._place, self.model, self._rubric, question, answer]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _ask(self, key: str, question: str, answer: str, file: IO[str] | None) -> Judgement:
        score, reason, failure = None, "", None
        try:
            score, reason = read_reply(self._text(question, answer))
        except ValueError as error:
            if isinstance(error, NptiError):
                raise
            failure = str(error)
        judgement = Judgement(question, answer, self.trait.name, self.name, score, reason, failure)
        if file is not None and failure is None:
            line = json.dumps({"key": key, **{n: v for n, v in vars(judgement).items() if n != "failure"}})
            with self._record_lock:
                file.write(line + "\n")
                file.flush()
        return judgement

    def _text(self, question: str, answer: str) -> str:
        """What the judge wrote; ValueError if that is no full reply, NptiError if asking further has no sense."""
        try:
            reply = self._reply(question, answer)
        except _TURNED_DOWN as error:
            raise ValueError(f"the server turned the request down: {self._said(error)}") from None
        except openai.APIStatusError as error:
            raise NptiError(self._turned_down(error)) from None
        except openai.APIConnectionError as error:
            cause = self._safe(str(error.__cause__ or error))
            raise NptiError(
                f"The judge at {self._place} cannot be reached ({cause}); check the address and the network and run "
                f"again{self._what_is_kept()}."
            ) from None
        # The client checks nothing: a web page comes back as text, an object without choices as it is.
        if not isinstance(reply, ChatCompletion):
            raise NptiError(
                f"What answers at {self._place} does not speak OpenAI's chat completions; give the base URL of a "
                f"server that does, which usually ends in /v1."
            )
        if not reply.choices or not reply.choices[0].message:
            raise ValueError("the server's reply holds no message")
        choice = reply.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise ValueError(f"the judge refused: {shorten(choice.message.refusal or 'content filter')}")
        if choice.finish_reason == "length":
            raise ValueError(f"the reply was cut off: {shorten(choice.message.content or '')!r}")
        return choice.message.content or ""

    def _reply(self, question: str, answer: str) -> ChatCompletion:
        if not self._with_schema:
            return self._create(question, answer, with_schema=False)
        try:
            return self._create(question, answer, with_schema=True)
        except _TURNED_DOWN:
            # The rubric asks for the same JSON. If this too is turned down, the schema was not what was wrong.
            reply = self._create(question, answer, with_schema=False)
            self._with_schema = False
            return reply

    def _create(self, question: str, answer: str, with_schema: bool) -> ChatCompletion:
        return self._client.chat.completions.create(
            model=self.model,
            messages=[
                {"role": "system", "content": self._rubric},
                {
                    "role": "user",
                    "content": f"<question>\n{question}\n</question>\n\n<answer>\n{answer}\n</answer>",
                },
            ],
            temperature=0.0,
            seed=SEED,
            max_tokens=MAX_TOKENS,
            response_format=RESPONSE_FORMAT if with_schema else openai.omit,
        )

    def _turned_down(self, error: openai.APIStatusError) -> str:
        # What servers say to 401 and 403 often repeats a part of the key.
        what, mend = {
            401: ("does not accept the key", "check OPENAI_API_KEY"),
            403: ("does not let this key use it", f"check what the key in OPENAI_API_KEY may do with {self.model}"),
            404: (f"knows no model {self.model} at this address ({self._said(error)})", "check both"),
        }.get(error.status_code, (f"gave up on the request ({self._said(error)})", "try again later"))
        return f"The judge at {self._place} {what} (status {error.status_code}); {mend}{self._what_is_kept()}."

    def _what_is_kept(self) -> str:
        return f" (what was judged so far is kept in {self.record})" if self.record else ""

    def _said(self, error: openai.APIStatusError) -> str:
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        return self._safe(str(said or "without a word"))

    def _safe(self, text: str) -> str:
        return shorten(text.replace(self._secret, "[key]") if self._secret else text)


def _key(url: str) -> str | None:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    # Such a key would come back in the client's own message.
    if not (key.isascii() and key.isprintable()):
        raise NptiError("OPENAI_API_KEY holds characters that no key has; copy the key again.")
    if not key and f".{urlsplit(url).hostname}".endswith(".openai.com"):
        raise NptiError(
            "The OpenAI judge needs a key: set OPENAI_API_KEY, or OPENAI_BASE_URL to another server that speaks chat "
            "completions, or use the local judge."
        )
    return key or None


def _place(url: str) -> str:
    """The address as it may be shown: without any user, password or query."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NptiError("The judge's base URL is not one; it should be like http://localhost:8000/v1.")
    return parts.netloc.rpartition("@")[2] + parts.path


def _appending(record: Path | None) -> IO[str] | nullcontext[None]:
    if record is None:
        return nullcontext()
    record.parent.mkdir(parents=True, exist_ok=True)
    return record.open("a", encoding="utf-8", newline="\n")


def _read_record(record: Path) -> dict[str, Judgement]:
    """The judgements kept, by key; a last line that a kill left unfinished is cut off."""
    if not record.exists():
        return {}
    done, start = {}, 0
    lines = record.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            fields = json.loads(line)
            key, score = str(fields.pop("key")), float(fields.pop("score"))
            if not LOWEST <= score <= HIGHEST:
                raise ValueError
            done[key] = Judgement(**fields, score=score, failure=None)
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines) or not line.startswith(b"{"):
                raise NptiError(
                    f"Line {number} of {record} is no judgement; give another file, or mend or delete that line."
                ) from None
            os.truncate(record, start)
        start += len(line)
    return done
