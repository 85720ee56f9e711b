"""What the scripts that measure trait after trait share: their options, and the three files that each writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure

from npti_export.cli import loading, options
from npti_export.cli.one_argument import as_one
from npti_export.traits import TRAITS


@dataclass(frozen=True)
class Run:
    """Which model is measured on which traits, and where the results go.

    Args:
        model_name: Hub id or folder; None is the bundled one.
        traits: Only these; all five unless given.
        output: Folder of the results.
        device: Where.
        dtype: In which precision.
        batch_size: Rows worked on at once.
    """

    model_name: str | None
    traits: tuple[str, ...]
    output: Path
    device: str
    dtype: str
    batch_size: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the traits."""
        return self.traits or tuple(TRAITS)

    def load(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return loading.load_model(self.model_name, self.device, self.dtype, quiet=False)

    def write(self, name: str, record: object, page: str, picture: Figure) -> None:
        """Writes the record as JSON, the page as Markdown and the picture as PNG, and shows the page."""
        self.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (self.output / f"{name}.json").write_text(text, encoding="utf-8")
        (self.output / f"{name}.md").write_text(page, encoding="utf-8")
        picture.savefig(self.output / f"{name}.png")
        click.echo(page)


run = as_one(
    "run",
    Run,
    options.model,
    click.option("--trait", "traits", multiple=True, help="Only these traits; all five unless given."),
    click.option("--output", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True),
    options.device,
    options.dtype,
    options.batch_size,
)
"""The options; the script gets them as one :class:`Run`."""
