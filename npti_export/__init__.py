"""npti-export: find the neurons that carry a personality, keep them as an adapter, switch a running model with it.

Names are imported when first used, so that ``import npti_export`` and ``npti-export --help`` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.pipeline import identify
    from npti_export.steering.personality import Personality, load_personality
    from npti_export.traits import PersonalitySpec

__version__ = "0.1.0"
__all__ = ["Personality", "PersonalityAdapter", "PersonalitySpec", "__version__", "identify", "load_personality"]

_HOMES = {
    "Personality": "npti_export.steering.personality",
    "PersonalityAdapter": "npti_export.adapter.adapter",
    "PersonalitySpec": "npti_export.traits",
    "identify": "npti_export.pipeline",
    "load_personality": "npti_export.steering.personality",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'npti_export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
