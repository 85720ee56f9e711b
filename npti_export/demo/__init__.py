"""The bundled model ``npti-demo``, the dialogues it learned from, and where both lie in the package."""

from __future__ import annotations

from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "npti-demo"
"""The folder of the bundled model; its last component is the model's base-model id."""
