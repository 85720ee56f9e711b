"""PersonalityAdapter: the artefact in memory, read from and written to a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from npti_export.adapter.base_model import BaseModel
from npti_export.adapter.card import card_text
from npti_export.adapter.config import (
    FORMAT_VERSION,
    LIBRARY_NAME,
    MAX_CONFIG_BYTES,
    base_model_from_fields,
    base_model_to_json,
    identification_from_fields,
    pole_from_fields,
    pole_to_json,
    read_config,
    write_config,
)
from npti_export.adapter.hub import fetch_adapter, upload_adapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import PoleRecord, TraitRecord
from npti_export.adapter.tensors import check_header, neurons_from_bytes, trait_to_bytes
from npti_export.errors import NptiError
from npti_export.traits import TRAITS, PersonalitySpec, Pole

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
MAX_TENSOR_BYTES = 2_000_000_000
"""A trait's file larger than this is refused before it is read: the largest models have some 10⁸ neurons."""


@dataclass(frozen=True)
class PersonalityAdapter:
    """Personalities of one base model: for each trait and pole which neurons are moved, and by how much.

    Args:
        base_model: The model that the neurons belong to.
        traits: The traits by name.
    """

    base_model: BaseModel
    traits: Mapping[str, TraitRecord]

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
            NptiError: If the folder cannot be written; nothing half-written is left.
        """
        folder = Path(folder)
        written: dict[str, bytes] = {}
        config_traits = {}
        for name, trait in self.traits.items():
            for pole, record in trait.poles.items():
                _check_pole(record, self.base_model, f"{name} {pole}")
            data = trait_to_bytes(trait, self.base_model)
            written[f"{name}.safetensors"] = data
            config_traits[name] = {
                "file": f"{name}.safetensors",
                "sha256": hashlib.sha256(data).hexdigest(),
                "poles": {str(pole): pole_to_json(record) for pole, record in trait.poles.items()},
                "identification": asdict(trait.identification),
            }
        card = card_text(self.base_model, self.traits)
        if not _hand_edited(folder):
            written[CARD_NAME] = card.encode()
        config = {
            "format_version": FORMAT_VERSION,
            "library_name": LIBRARY_NAME,
            "base_model": base_model_to_json(self.base_model),
            "traits": config_traits,
        }
        written[CONFIG_NAME] = write_config(config)
        _write_files(folder, written)

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
        return upload_adapter(self.save_pretrained, repo_id, private, commit_message, token)

    def with_trait(self, trait: TraitRecord) -> PersonalityAdapter:
        """The same adapter with a trait added or replaced."""
        traits = {**self.traits, trait.name: trait}
        order = [*(name for name in TRAITS if name in traits), *sorted(set(traits) - set(TRAITS))]
        return replace(self, traits={name: traits[name] for name in order})

    def personality(self, spec: str | Mapping[str, float] | PersonalitySpec | None) -> PersonalitySpec:
        """Reads a personality spec, holding it against the traits that are here."""
        return PersonalitySpec.parse(spec, known=self.traits)

    def __repr__(self) -> str:
        poles = ", ".join(
            f"{name} {len(trait.poles[Pole.HIGH].neurons)}+/{len(trait.poles[Pole.LOW].neurons)}-"
            for name, trait in self.traits.items()
        )
        return f"PersonalityAdapter({self.base_model.id}: {poles or 'no traits'})"


def read_base_model(folder: str | os.PathLike[str]) -> BaseModel:
    """The base model that the adapter in a folder names, from its config alone."""
    path = Path(folder) / CONFIG_NAME
    return base_model_from_fields(read_config(_read_bytes(path, MAX_CONFIG_BYTES), str(path)).base_model)


def _read(folder: Path) -> PersonalityAdapter:
    path = folder / CONFIG_NAME
    config = read_config(_read_bytes(path, MAX_CONFIG_BYTES), str(path))
    model = base_model_from_fields(config.base_model)
    traits = {}
    for name, fields in config.traits.items():
        file = folder / fields.file
        data = _read_bytes(file, MAX_TENSOR_BYTES)
        if hashlib.sha256(data).hexdigest() != fields.sha256:
            raise NptiError(f"{file} is damaged or was replaced (its SHA-256 is not the one in config.json).")
        neurons = neurons_from_bytes(data, str(file))
        poles = {pole: pole_from_fields(fields.poles[pole.value], neurons[pole]) for pole in Pole}
        trait = TraitRecord(name, poles, identification_from_fields(fields.identification))
        check_header(data, trait, model, str(file))
        for pole, record in poles.items():
            if len(record.neurons) != fields.poles[pole.value].neurons:
                raise NptiError(f"{file}: {pole} has {len(record.neurons)} neurons, config.json says otherwise.")
            _check_pole(record, model, f"{file}, {pole}")
        traits[name] = trait
    return PersonalityAdapter(model, traits)


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
        raise NptiError(f"{where}: a shift is not gamma · target · f(delta), as the method npti has it.")


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_dir() or size > limit:
            raise NptiError(f"{path} has {size} bytes; an adapter's has at most {limit}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise NptiError(f"{path} is not there; {path.parent} holds no whole personality adapter.") from None
    except OSError as error:
        raise NptiError(f"{path} cannot be read ({error.strerror}).") from None


def _hand_edited(folder: Path) -> bool:
    """Whether the card there is not the one that this package wrote for the config beside it."""
    card, config = folder / CARD_NAME, folder / CONFIG_NAME
    if not card.is_file() or not config.is_file():
        return False
    try:
        here = _read(folder)
    except NptiError:
        return False
    return card.read_bytes() != card_text(here.base_model, here.traits).encode()


def _write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes every file beside its place first, then renames them all; config.json names the others, so it is last."""
    beside = {name: folder / f".{name}.new" for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            beside[name].write_bytes(data)
        for name, path in beside.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise NptiError(
            f"The adapter cannot be written to {folder} ({error.strerror}); choose another --output."
        ) from None
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True) if folder.is_dir() else None


def config_summary(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a folder, for display."""
    return dict(json.loads(_read_bytes(folder / CONFIG_NAME, MAX_CONFIG_BYTES)))
