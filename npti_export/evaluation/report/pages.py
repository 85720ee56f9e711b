"""HTML pages that need nothing else: texts are escaped, since models wrote them, and nothing is asked of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def rendered(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The text of a page.

    Args:
        template: File name of its template, beside this module.
        filters: What the template writes values with, by name.
        values: What it shows.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters)
    return environment.get_template(template).render(**values)
