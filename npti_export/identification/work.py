"""What the first two stages work with, and whether the files that are there are what they would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.base_model import BaseModel
from npti_export.errors import NptiError
from npti_export.identification.answers import Decoding
from npti_export.identification.endpoint import Endpoint
from npti_export.identification.files import TraitFiles, digest, file_sha256
from npti_export.identification.measurement import Measurement, Source, read_source
from npti_export.identification.questions import Material
from npti_export.identification.selection import Statistics, read_measured
from npti_export.steering.sites import Site

MEASURED = "neurons and residual stream"
"""What statistics hold; those of a release that measured less are measured again."""


@dataclass(frozen=True)
class Work:
    """What the first two stages work with.

    Args:
        model: A chat model, unsteered.
        tokenizer: Its tokenizer.
        sites: Its feed-forward activations.
        base_model: What an adapter records of it.
        decoding: How answers are decoded; its batch size is that of measuring too.
        endpoint: A server of the same model that answers in its place; None has it answer here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sites: Sequence[Site]
    base_model: BaseModel
    decoding: Decoding
    endpoint: Endpoint | None = None

    @property
    def decides(self) -> str:
        """Hash over what decides the bits of a forward, and of what is decoded."""
        model = self.model
        return digest(self.base_model, model.dtype, model.device.type, self.decoding, self.tokenizer.chat_template)


def measured_of(work: Work, files: TraitFiles, source: Source) -> tuple[Statistics, Measurement] | None:
    """The statistics that are there, if they are those of the transcripts that are there."""
    try:
        statistics, measurement, base_model = read_measured(files)
    except NptiError:
        return None
    same = (measurement.source, measurement.measured_with) == (source, measured_with_of(work, source))
    return (statistics, measurement) if same and base_model == work.base_model else None


def source_of(files: TraitFiles) -> Source:
    """How the transcripts that are there were made; nothing is known of others, or of ones changed since."""
    unknown = Source("", "", "", "", 0)
    try:
        source = read_source(files.source)
    except NptiError:
        return unknown
    return source if source.transcripts_sha256 == file_sha256(files.transcripts) else unknown


def made_with_of(work: Work, material: Material) -> str:
    """Hash over all that decides the answers."""
    server = () if work.endpoint is None else (work.endpoint.place, work.endpoint.model)
    return digest(work.decides, material.sha256, *server)


def measured_with_of(work: Work, source: Source) -> str:
    """Hash over all that decides the statistics."""
    return digest(work.decides, source.transcripts_sha256, MEASURED)
