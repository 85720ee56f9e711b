"""What a server was told through its environment: which adapter, which personality for requests that name none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.hub import fetch_adapter
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.plugin import ADAPTER_VARIABLE, PERSONALITY_VARIABLE, PRESETS_VARIABLE
from npti_export.serving.presets import read_presets


@dataclass(frozen=True)
class ServingSettings:
    """The settings of a server, the same in each of its processes.

    Args:
        name: The adapter as the user named it, for the log.
        adapter: The adapter.
        default: The personality of requests that name none; None is neutral.
        presets: Names for personalities.
    """

    name: str
    adapter: PersonalityAdapter
    default: str | None
    presets: Mapping[str, str] = field(default_factory=dict)

    def personalities(self, dtype: torch.dtype = torch.float32) -> ServedPersonalities:
        """The personalities for a model whose activations have a dtype.

        Raises:
            NptiError: If the default or a preset cannot be served.
        """
        return ServedPersonalities(self.adapter, self.default, torch.finfo(dtype).max, self.presets)

    @classmethod
    def from_environment(cls) -> ServingSettings:
        """Reads ``NPTI_ADAPTER``, ``NPTI_PERSONALITY`` and ``NPTI_PRESETS``.

        A Hub repository is resolved once: the environment then names the folder of the commit, so that processes that
        start later serve the same one.

        Raises:
            NptiError: If the adapter or the presets cannot be read.
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
        )
