"""PersonalityAdapter: the artefact in memory, read from and written to a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.card import ADDRESS, card_text, is_generated
from npti_export.adapter.config import (
    FORMAT_VERSION,
    LIBRARY_NAME,
    base_model_from_fields,
    base_model_to_json,
    identification_from_fields,
    pole_from_fields,
    pole_to_json,
    read_config,
    write_config,
)
from npti_export.adapter.files import (
    CARD_NAME,
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    MAX_TENSOR_BYTES,
    read_bytes,
    write_files,
)
from npti_export.adapter.hub import fetch_adapter, upload_adapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import PoleRecord, TraitRecord
from npti_export.adapter.tensors import check_header, neurons_from_bytes, trait_to_bytes
from npti_export.errors import NptiError
from npti_export.traits import PersonalitySpec, Pole, in_canonical_order


@dataclass(frozen=True)
class PersonalityAdapter:
    """Personalities of one base model: for each trait and pole which neurons are moved, and by how much.

    Args:
        base_model: The model that the neurons belong to.
        traits: The traits by name, kept in canonical order.
        card: The model card that it was read with, if that was edited by hand; it is written and pushed as it is.
    """

    base_model: BaseModel
    traits: Mapping[str, TraitRecord]
    card: bytes | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, trait in self.traits.items():
            if trait.name != name:
                raise NptiError(f"The trait under {name!r} is called {trait.name!r}; the two must agree.")
        ordered = {name: self.traits[name] for name in in_canonical_order(self.traits)}
        object.__setattr__(self, "traits", ordered)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], revision: str | None = None, token: str | None = None
    ) -> PersonalityAdapter:
        """Reads an adapter from a folder, or from the Hugging Face Hub.

        Args:
            path_or_repo: A folder, or a Hub repository such as ``user/name``.
            revision: Branch, tag or commit on the Hub.
            token: Hub token; None takes the one that is logged in.

        Raises:
            NptiError: If it is not there or anything in it is not as the format says; the file is named.
        """
        folder = Path(path_or_repo)
        if not folder.is_dir():
            folder = fetch_adapter(str(path_or_repo), revision, token)
        return _read(folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the adapter into a folder: one safetensors file a trait, the model card, and config.json last.

        The same adapter gives the same bytes. A model card that was edited by hand is kept.

        Args:
            folder: Where; made if it is not there.

        Raises:
            NptiError: If the adapter breaks the format, or the folder cannot be written; nothing half-written is left.
        """
        folder = Path(folder)
        contents = self._contents()
        # A card that somebody wrote, here or where this adapter was read, is never written over.
        if _card_in(folder) is not None:
            del contents[CARD_NAME]
        write_files(folder, contents)

    def push_to_hub(
        self, repo_id: str, private: bool = False, commit_message: str | None = None, token: str | None = None
    ) -> str:
        """Uploads the adapter with its card to the Hugging Face Hub in one commit.

        Args:
            repo_id: ``user/name``; made if it is not there.
            private: Whether a new repository is private.
            commit_message: First line of the commit.
            token: Hub token; None takes the one that is logged in.

        Returns:
            The address of the repository.

        Raises:
            NptiError: If the Hub refuses; with what to do.
        """
        return upload_adapter(self._contents(repo_id), repo_id, private, commit_message, token)

    def with_trait(self, trait: TraitRecord) -> PersonalityAdapter:
        """The same adapter with a trait added or replaced."""
        return replace(self, traits={**self.traits, trait.name: trait})

    def personality(self, spec: str | Mapping[str, float] | PersonalitySpec | None) -> PersonalitySpec:
        """Reads a personality spec, holding it against the traits that are here."""
        return PersonalitySpec.parse(spec, known=self.traits)

    def __repr__(self) -> str:
        poles = ", ".join(
            f"{name} {len(trait.poles[Pole.HIGH].neurons)}+/{len(trait.poles[Pole.LOW].neurons)}-"
            for name, trait in self.traits.items()
        )
        return f"PersonalityAdapter({self.base_model.id}: {poles or 'no traits'})"

    def _contents(self, address: str = ADDRESS) -> dict[str, bytes]:
        """The bytes of every file by name, config.json last because it names the others."""
        contents: dict[str, bytes] = {}
        traits = {}
        for name, trait in self.traits.items():
            for pole, record in trait.poles.items():
                _check_pole(record, self.base_model, f"{name} {pole}")
            data = trait_to_bytes(trait, self.base_model)
            contents[f"{name}.safetensors"] = data
            traits[name] = {
                "file": f"{name}.safetensors",
                "sha256": hashlib.sha256(data).hexdigest(),
                "poles": {str(pole): pole_to_json(record) for pole, record in trait.poles.items()},
                "identification": asdict(trait.identification),
            }
        config = write_config(
            {
                "format_version": FORMAT_VERSION,
                "library_name": LIBRARY_NAME,
                "base_model": base_model_to_json(self.base_model),
                "traits": traits,
            }
        )
        read_config(config, "The adapter's config")  # what could not be read again is not written
        contents[CARD_NAME] = self.card or card_text(self.base_model, self.traits, address).encode()
        contents[CONFIG_NAME] = config
        return contents


def read_base_model(folder: str | os.PathLike[str]) -> BaseModel:
    """The base model that the adapter in a folder names, from its config alone."""
    path = Path(folder) / CONFIG_NAME
    return base_model_from_fields(read_config(read_bytes(path, MAX_CONFIG_BYTES), str(path)).base_model)


def _read(folder: Path) -> PersonalityAdapter:
    path = folder / CONFIG_NAME
    config = read_config(read_bytes(path, MAX_CONFIG_BYTES), str(path))
    model = base_model_from_fields(config.base_model)
    traits = {}
    for name, fields in config.traits.items():
        file = folder / fields.file
        data = read_bytes(file, MAX_TENSOR_BYTES)
        if hashlib.sha256(data).hexdigest() != fields.sha256:
            raise NptiError(f"{file} is damaged or was replaced (its SHA-256 is not the one in config.json).")
        neurons = neurons_from_bytes(data, str(file))
        poles = {pole: pole_from_fields(fields.poles[pole.value], neurons[pole]) for pole in Pole}
        trait = TraitRecord(name, poles, identification_from_fields(fields.identification))
        check_header(data, trait, model, str(file))
        for pole, record in poles.items():
            _check_pole(record, model, f"{file}, {pole}")
            said = fields.poles[pole.value].neurons
            if len(record.neurons) != said:
                raise NptiError(f"{file}: {pole} has {len(record.neurons)} neurons; {CONFIG_NAME} says {said}.")
        traits[name] = trait
    return PersonalityAdapter(model, traits, _card_in(folder))


def _check_pole(record: PoleRecord, model: BaseModel, where: str) -> None:
    """The invariants of one pole, the one between shift, dose, target and delta included."""
    neurons: NeuronSet = record.neurons
    neurons.check(model, where)
    if neurons.target.size and neurons.target.min() <= 0:
        raise NptiError(f"{where}: a target is not above 0.")
    if neurons.delta.size and neurons.delta.min() <= 0:
        raise NptiError(f"{where}: a delta is not above 0.")
    expected = record.method.shift(record.gamma, neurons.target, neurons.delta)
    if not np.allclose(neurons.shift, expected, rtol=1e-6, atol=0):
        raise NptiError(f"{where}: a shift is not gamma · target · f(delta) with the gamma of {record.gamma:g} given.")


def _card_in(folder: Path) -> bytes | None:
    """The model card in a folder, if it is not as this package wrote it."""
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    card = read_bytes(path, MAX_CONFIG_BYTES)
    return None if is_generated(card) else card
