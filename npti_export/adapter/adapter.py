"""PersonalityAdapter: the artefact in memory, read from and written to a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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
    read_bytes,
    write_files,
)
from npti_export.adapter.hub import fetch_adapter, full_name, upload_adapter, wanted_traits
from npti_export.adapter.invariants import check_hidden, check_trait
from npti_export.adapter.records import HAS_RESIDUAL, NPTI, PoleRecord, TraitRecord
from npti_export.adapter.schema import TraitFields
from npti_export.adapter.tensors import check_description, largest_file, trait_from_bytes, trait_to_bytes
from npti_export.errors import NptiError
from npti_export.traits import PersonalitySpec, Pole, in_canonical_order


@dataclass(frozen=True)
class PersonalityAdapter:
    """Personalities of one base model: for each trait and pole which neurons are moved, and by how much.

    Args:
        base_model: The model that the neurons belong to.
        traits: The traits by name, kept in canonical order.
        card: The model card that it was read with, if that was edited by hand; it is written and pushed as it is.

    >>> from tempfile import TemporaryDirectory
    >>> from npti_export.adapter.find import bundled_folder
    >>> adapter = PersonalityAdapter.from_pretrained(bundled_folder())
    >>> list(adapter.traits)
    ['openness', 'conscientiousness', 'extraversion', 'agreeableness', 'neuroticism']
    >>> print(adapter.personality("Extraversion+, openness-0.5"))
    openness-0.5,extraversion+
    >>> with TemporaryDirectory() as folder:
    ...     adapter.save_pretrained(folder)
    ...     PersonalityAdapter.from_pretrained(folder, traits=["openness"])
    PersonalityAdapter(npti-demo: openness ...+.../...-...)
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
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        traits: Sequence[str] | None = None,
    ) -> PersonalityAdapter:
        """Reads an adapter from a folder, or from the Hugging Face Hub; all of its files are of one commit.

        Args:
            path_or_repo: A folder, or a Hub repository such as ``user/name``.
            revision: Branch, tag or commit on the Hub.
            token: Hub token; None takes the one that is logged in.
            cache_dir: Where downloads are kept; None is the Hub's own cache.
            local_files_only: Whether to take what was downloaded before and ask nobody.
            traits: Which traits to read, and to download; None is all of them.

        Raises:
            NptiError: If it is not there or anything in it is not as the format says; the file is named.
        """
        folder = Path(path_or_repo)
        if not folder.is_dir():
            folder = fetch_adapter(str(path_or_repo), revision, token, cache_dir, local_files_only, traits)
        elif revision is not None:
            raise NptiError(f"{folder} is a folder, which has no revision {revision!r}; leave the revision out.")
        return _read(folder, traits)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the adapter into a folder: one safetensors file a trait, the model card, and config.json last.

        The same adapter gives the same bytes. A model card that was edited by hand is kept.

        Args:
            folder: Where; made if it is not there.

        Raises:
            NptiError: If the adapter breaks the format, or the folder cannot be written; nothing half-written is left.
        """
        folder = Path(folder)
        contents = self.contents()
        # A card that somebody wrote, here or where this adapter was read, is never written over.
        if _card_in(folder) is not None:
            del contents[CARD_NAME]
        write_files(folder, contents)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        commit_message: str | None = None,
        branch: str | None = None,
        token: str | None = None,
        replace_card: bool = False,
    ) -> str:
        """Uploads the adapter with its card to the Hugging Face Hub in one commit.

        Args:
            repo_id: ``user/name``; made if it is not there.
            private: Whether a new repository is private.
            create_pr: Whether to open a pull request on a repository that is there, in place of a commit.
            commit_message: First line of the commit.
            branch: Where the commit goes, made from ``main`` if it is not there; None is ``main``.
            token: Hub token; None takes the one that is logged in.
            replace_card: Whether this card goes over one that was edited by hand on the Hub.

        Returns:
            The address of the repository, of the branch in it, or of the pull request.

        Raises:
            NptiError: If the Hub refuses; with what to do.
        """
        repo_id = full_name(repo_id, token)
        return upload_adapter(
            self.contents(repo_id),
            repo_id,
            private=private,
            create_pr=create_pr,
            message=commit_message,
            branch=branch,
            token=token,
            replace_card=replace_card,
        ).address

    def with_trait(self, trait: TraitRecord) -> PersonalityAdapter:
        """The same adapter with a trait added or replaced."""
        return replace(self, traits={**self.traits, trait.name: trait})

    def personality(self, spec: str | Mapping[str, float] | PersonalitySpec | None) -> PersonalitySpec:
        """Reads a personality spec, holding it against the traits that are here."""
        return PersonalitySpec.parse(spec, known=self.traits)

    def __repr__(self) -> str:
        traits = ", ".join(
            f"{name} {'/'.join(_counted(pole, trait.poles[pole]) for pole in Pole if pole in trait.poles)}"
            for name, trait in self.traits.items()
        )
        return f"PersonalityAdapter({self.base_model.id}: {traits or 'no traits'})"

    def contents(self, address: str = ADDRESS) -> dict[str, bytes]:
        """The bytes of every file by name, config.json last because it names the others.

        Args:
            address: The Hub repository that the model card names.

        Raises:
            NptiError: If the adapter breaks the format.
        """
        contents: dict[str, bytes] = {}
        _config_of(self.base_model, {})  # a broken base model is found before neurons are held against it
        traits = {}
        for name, trait in self.traits.items():
            check_trait(trait, self.base_model, f"{name} ")
            data = trait_to_bytes(trait, self.base_model)
            contents[f"{name}.safetensors"] = data
            traits[name] = {
                "file": f"{name}.safetensors",
                "sha256": hashlib.sha256(data).hexdigest(),
                "poles": {str(pole): pole_to_json(record) for pole, record in trait.poles.items()},
                "identification": asdict(trait.identification),
            }
        check_hidden(self.traits, "The adapter")
        config = _config_of(self.base_model, traits)
        contents[CARD_NAME] = self.card or card_text(self.base_model, self.traits, address).encode()
        contents[CONFIG_NAME] = config
        return contents


def read_base_model(folder: str | os.PathLike[str]) -> BaseModel:
    """The base model that the adapter in a folder names, from its config alone."""
    path = Path(folder) / CONFIG_NAME
    return base_model_from_fields(read_config(read_bytes(path, MAX_CONFIG_BYTES), str(path)).base_model)


def _read(folder: Path, wanted: Sequence[str] | None) -> PersonalityAdapter:
    path = folder / CONFIG_NAME
    config = read_config(read_bytes(path, MAX_CONFIG_BYTES), str(path))
    model = base_model_from_fields(config.base_model)
    traits = {
        name: _read_trait(folder, name, fields, model)
        for name, fields in wanted_traits(config, wanted, str(folder)).items()
    }
    check_hidden(traits, str(folder))
    return PersonalityAdapter(model, traits, _card_in(folder))


def _read_trait(folder: Path, name: str, fields: TraitFields, model: BaseModel) -> TraitRecord:
    """One trait from its file and from what the config says of it."""
    path = folder / fields.file
    of_poles = fields.poles.values()
    limit = largest_file(
        sum(pole.neurons for pole in of_poles),
        sum(pole.method.name in HAS_RESIDUAL for pole in of_poles),
        model.num_layers,
    )
    data = read_bytes(path, limit)
    if hashlib.sha256(data).hexdigest() != fields.sha256:
        raise NptiError(
            f"{path} is damaged or was replaced (its SHA-256 is not the one in {CONFIG_NAME}); fetch or identify "
            f"{name} again."
        )
    file = trait_from_bytes(data, str(path))
    poles = {}
    for pole in Pole:
        said = fields.poles[pole.value]
        poles[pole] = pole_from_fields(said, file.neurons[pole], file.residual[pole])
    trait = TraitRecord(name, poles, identification_from_fields(fields.identification))
    check_description(file.description, trait, model, str(path))
    check_trait(trait, model, f"{path}, ")
    for pole in Pole:
        found, expected = len(poles[pole].neurons), fields.poles[pole.value].neurons
        if found != expected:
            raise NptiError(f"{path}: {pole} has {found} neurons; {CONFIG_NAME} says {expected}.")
    return trait


def _config_of(model: BaseModel, traits: dict[str, Any]) -> bytes:
    """The bytes of config.json, read once so that nothing is written that could not be read again."""
    config = write_config(
        {
            "format_version": FORMAT_VERSION,
            "library_name": LIBRARY_NAME,
            "base_model": base_model_to_json(model),
            "traits": traits,
        }
    )
    read_config(config, "The adapter's config")
    return config


def _counted(pole: Pole, record: PoleRecord) -> str:
    """A pole as the adapter prints it: how many neurons, and by which method if it is not the paper's."""
    return f"{len(record.neurons)}{pole.sign}" + ("" if record.method.name == NPTI else f" {record.method.name}")


def _card_in(folder: Path) -> bytes | None:
    """The model card in a folder, if it is not as this package wrote it."""
    path = folder / CARD_NAME
    if not os.path.lexists(path):
        return None
    card = read_bytes(path, MAX_CONFIG_BYTES)
    return None if is_generated(card) else card
