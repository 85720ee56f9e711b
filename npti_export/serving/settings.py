"""What a server was told through its environment: which adapter, which personality for requests that name none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.hub import fetch_adapter
from npti_export.errors import NptiError
from npti_export.serving.added import DEFAULT_SLOTS
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.plugin import (
    ADAPTER_VARIABLE,
    ADMIN_KEY_VARIABLE,
    PERSONALITY_VARIABLE,
    PRESETS_VARIABLE,
    SLOTS_VARIABLE,
)
from npti_export.serving.presets import read_presets

MIN_KEY_LENGTH = 16
MAX_SLOTS = 10_000
"""Every name is listed by ``/v1/models``."""


@dataclass(frozen=True)
class ServingSettings:
    """The settings of a server, the same in each of its processes.

    Args:
        name: The adapter as the user named it, for the log.
        adapter: The adapter.
        default: The personality of requests that name none; None is neutral.
        presets: Names for personalities.
        admin_key: Who knows it may add names while the server runs; None lets nobody.
        slots: How many names may be added.
    """

    name: str
    adapter: PersonalityAdapter
    default: str | None
    presets: Mapping[str, str] = field(default_factory=dict)
    admin_key: str | None = field(default=None, repr=False)
    slots: int = DEFAULT_SLOTS

    def personalities(self, dtype: torch.dtype = torch.float32) -> ServedPersonalities:
        """The personalities for a model whose activations have a dtype.

        Raises:
            NptiError: If the default or a preset cannot be served.
        """
        return ServedPersonalities(self.adapter, self.default, torch.finfo(dtype).max, self.presets)

    @classmethod
    def from_environment(cls) -> ServingSettings:
        """Reads ``NPTI_ADAPTER``, ``NPTI_PERSONALITY``, ``NPTI_PRESETS``, ``NPTI_ADMIN_KEY`` and ``NPTI_SLOTS``.

        A Hub repository is resolved once: the environment then names the folder of the commit, so that processes that
        start later serve the same one.

        Raises:
            NptiError: If the adapter or the presets cannot be read, or the others are not what they should be.
        """
        name = os.environ[ADAPTER_VARIABLE]
        folder = Path(name)
        if not folder.is_dir():
            folder = fetch_adapter(name)
        os.environ[ADAPTER_VARIABLE] = str(folder.absolute())
        presets = os.environ.get(PRESETS_VARIABLE)
        return cls(
            name,
            PersonalityAdapter.from_pretrained(folder),
            os.environ.get(PERSONALITY_VARIABLE) or None,
            read_presets(presets) if presets else {},
            _admin_key(),
            _slots(),
        )


def _admin_key() -> str | None:
    key = os.environ.get(ADMIN_KEY_VARIABLE) or None
    if key is not None and (len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key):
        raise NptiError(
            f"{ADMIN_KEY_VARIABLE} is no key to rely on; {MIN_KEY_LENGTH} or more printable ASCII characters without "
            "blanks are expected."
        )
    return key


def _slots() -> int:
    given = os.environ.get(SLOTS_VARIABLE) or str(DEFAULT_SLOTS)
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not 1 <= int(given) <= MAX_SLOTS:
        raise NptiError(f"{SLOTS_VARIABLE} is {given[:50]!r}; a number from 1 to {MAX_SLOTS} is expected.")
    return int(given)
