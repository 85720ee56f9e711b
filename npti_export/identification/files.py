"""Where the files of identification lie beside an adapter, and writing them whole."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from npti_export.errors import NptiError
from npti_export.traits import Pole


@dataclass(frozen=True)
class TraitFiles:
    """The files that the stages of identification hand on for one trait.

    Args:
        folder: The adapter's folder.
        trait: The trait.
    """

    folder: Path
    trait: str

    @property
    def transcripts(self) -> Path:
        """Question, persona and answer, JSON lines."""
        return self.folder / "transcripts" / f"{self.trait}.jsonl"

    @property
    def source(self) -> Path:
        """How the transcripts were made, JSON."""
        return self.folder / "transcripts" / f"{self.trait}.json"

    def partial(self, made_with: str) -> Path:
        """Where answers are kept until all are there; another name wherever they could come out otherwise."""
        return self.folder / "transcripts" / f".{self.trait}.{made_with[:12]}.partial"

    def statistics(self, pole: Pole) -> Path:
        """What was counted at one pole, safetensors."""
        return self.folder / "statistics" / f"{self.trait}_{pole}.safetensors"

    @property
    def measurement(self) -> Path:
        """What was measured, and how sure that is after each block of questions, JSON."""
        return self.folder / "statistics" / f"{self.trait}.json"

    @property
    def done(self) -> Path:
        """What the trait that stands in the adapter, with its dose, was made with, JSON."""
        return self.folder / "statistics" / f"{self.trait}.done.json"


def write_beside(path: Path, data: bytes) -> None:
    """Writes a file whole: beside its place first, then renamed, so that a kill leaves the old one or the new one.

    Raises:
        NptiError: If it cannot be written; what was there before is then still there.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise NptiError(f"{path} cannot be written ({error.strerror}); make room or choose another --output.") from None


def digest(*parts: object) -> str:
    """SHA-256 over what decides a result, to tell whether a file that is there is that result."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
