"""Answers kept as they come, by all that decides them, so that a run that was broken off asks only the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.tensors import trait_to_bytes
from npti_export.errors import NptiError
from npti_export.identification.answers import Answer, Decoding, Progress
from npti_export.identification.files import digest


class KeptAnswers:
    """Answers by what decides them.

    Args:
        path: A JSON-lines file, to which they are added; None keeps them for this run alone.

    Raises:
        NptiError: If the file cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept = _read(path) if path else {}

    def given_or(
        self, key: str, count: int, progress: Progress | None, ask: Callable[[], list[Answer]]
    ) -> list[Answer]:
        """The answers under a key, or those that are asked for now, which are kept then.

        Args:
            key: Digest of all that decides them.
            count: How many there must be.
            progress: Told of those that are there already; of others ``ask`` tells.
            ask: Asks for them.

        Raises:
            NptiError: If they cannot be kept.
        """
        kept = self._kept.get(key)
        if kept is not None and len(kept) == count:
            if progress:
                progress(count)
            return kept
        answers = ask()
        self._kept[key] = answers
        if self._path is not None:
            _append(self._path, key, answers)
        return answers


def what_decides(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_model: BaseModel, decoding: Decoding
) -> str:
    """Digest of what decides every answer of a run, beside the prompt and what steers."""
    return digest(base_model, model.dtype, model.device.type, decoding, tokenizer.chat_template)


def adapter_digest(adapter: PersonalityAdapter) -> str:
    """Hash over all that an adapter does to a model."""
    parts = []
    for trait in adapter.traits.values():
        tensors = hashlib.sha256(trait_to_bytes(trait, adapter.base_model)).hexdigest()
        manner = [(pole, record.caps, record.positions, record.dropout) for pole, record in trait.poles.items()]
        parts.append((trait.name, tensors, manner))
    return digest(parts)


def _append(path: Path, key: str, answers: list[Answer]) -> None:
    line = json.dumps({"key": key, "answers": [asdict(answer) for answer in answers]}, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise NptiError(f"{path} cannot be written ({error.strerror}); make room and go on.") from None


def _read(path: Path) -> dict[str, list[Answer]]:
    """Answers that were kept; a line that a kill broke off is dropped, and one behind it is then a line of its own."""
    if not path.exists():
        return {}
    kept = {}
    try:
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
    except OSError as error:
        raise NptiError(f"{path} cannot be used ({error.strerror}); choose another --output.") from None
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
            kept[str(record["key"])] = [
                Answer(str(a["text"]), tuple(map(int, a["token_ids"])), bool(a["finished"])) for a in record["answers"]
            ]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # what cannot be read is asked again
    return kept
