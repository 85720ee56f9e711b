"""The record of judgements that were paid for: JSON lines, one a reply of the judge, appended as it comes.

A line holds what was asked (as a key), the judgement, the raw reply and how many tokens it took. Each is one write to a
file opened for appending, so that several runs may share a record, and a kill (SIGKILL too) loses at most the replies
that were under way.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from npti_export.errors import NptiError
from npti_export.evaluation.judges.judgement import Criterion, Judgement
from npti_export.evaluation.judges.rubric import HIGHEST, LOWEST


class Appender:
    """Appends judgements to a record, from any thread.

    Args:
        path: The record.
        descriptor: Of the file, opened for appending.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def append(self, key: str, judgement: Judgement, reply: str, tokens: tuple[int, int] | None) -> None:
        """Adds one judgement.

        Args:
            key: What was asked, as a digest.
            judgement: The judgement, a failed one included.
            reply: What the judge wrote, as it came.
            tokens: How many it read and wrote, where the server says so.

        Raises:
            NptiError: If the record cannot be written.
        """
        line = json.dumps({"key": key, **asdict(judgement), "reply": reply, "tokens": tokens}) + "\n"
        data = line.encode()
        try:
            with self._lock:
                if (written := os.write(self._descriptor, data)) != len(data):
                    raise OSError(None, f"only {written} of {len(data)} bytes went in")
        except OSError as error:
            raise NptiError(
                f"The record {self._path} cannot be written ({error.strerror}); make room or choose another --output."
            ) from None


@contextmanager
def appending(path: Path) -> Iterator[Appender]:
    """Opens a record to append to, with its folder.

    Raises:
        NptiError: If it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Answers are the user's own: others on the machine need not read them.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise NptiError(f"The record {path} cannot be opened ({error.strerror}); choose another --output.") from None
    try:
        _end_torn_line(descriptor)
        yield Appender(path, descriptor)
    finally:
        os.close(descriptor)


def read_record(path: Path) -> dict[str, Judgement]:
    """The judgements kept, by key; empty where there is no record yet.

    A line that broke off (a full disk, a power cut) is left out, and asked about again.

    Raises:
        NptiError: If a line is no judgement: then the file is another one, and it is left alone.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise NptiError(f"The record {path} cannot be read ({error.strerror}); choose another --output.") from None
    kept = {}
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            if line.startswith(b"{") or not line:
                continue
            fields = None
        try:
            key, judgement = _judgement(fields)
        except (ValueError, TypeError, KeyError):
            raise NptiError(
                f"Line {number} of {path} is no judgement; give another file, or mend or delete that line."
            ) from None
        kept[key] = judgement
    return kept


def _end_torn_line(descriptor: int) -> None:
    """So that what is appended does not go on where a write was cut."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size:
        os.lseek(descriptor, size - 1, os.SEEK_SET)
        if os.read(descriptor, 1) != b"\n":
            os.write(descriptor, b"\n")


def _judgement(fields: Any) -> tuple[str, Judgement]:
    """The key and the judgement of a line; an error of the kinds above where it is none."""
    texts = [fields[name] for name in ("key", "question", "answer", "trait", "judge", "reason")]
    key, question, answer, trait, judge, reason = texts
    score, failure, criterion = fields["score"], fields["failure"], fields["criterion"]
    if not all(isinstance(text, str) for text in texts) or criterion not in get_args(Criterion):
        raise ValueError
    if isinstance(score, bool) or not (score is None or LOWEST <= score <= HIGHEST):
        raise ValueError
    if isinstance(failure, str) != (score is None):
        raise ValueError
    return key, Judgement(
        question, answer, trait, judge, None if score is None else float(score), reason, failure, criterion
    )
