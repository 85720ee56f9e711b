"""An inventory: statements about a person, each keyed to a trait and its facet, from a file that the user gives."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from npti_export.errors import NptiError
from npti_export.traits import TRAIT_NAME

COLUMNS = ("label_raw", "text", "label_ocean", "key")
"""Of the file: facet, statement, trait (one of the letters below, or its name), and 1 or -1. Public copies of the
120-item IPIP-NEO in this form exist; its items are in the public domain."""
LETTERS = {
    "O": "openness",
    "C": "conscientiousness",
    "E": "extraversion",
    "A": "agreeableness",
    "N": "neuroticism",
}
MAX_BYTES = 2**20
MAX_TEXT = 300


@dataclass(frozen=True)
class Item:
    """One statement.

    Args:
        text: Such as ``Get on with my work``.
        trait: The trait that it speaks for.
        facet: Of that trait; empty where none is named.
        reverse: Whether to agree speaks for the trait's low end.
    """

    text: str
    trait: str
    facet: str
    reverse: bool


@dataclass(frozen=True)
class Inventory:
    """Statements from one file.

    Args:
        name: Of the file.
        sha256: Of its bytes, so that a report says which items were used without holding them.
        items: In the file's order.
    """

    name: str
    sha256: str
    items: tuple[Item, ...]

    @property
    def facets(self) -> dict[str, tuple[str, ...]]:
        """The facets of each trait, in the file's order."""
        found: dict[str, dict[str, None]] = {}
        for item in self.items:
            found.setdefault(item.trait, {})[item.facet] = None
        return {trait: tuple(facet for facet in facets if facet) for trait, facets in found.items()}


def read_inventory(path: Path) -> Inventory:
    """Reads an inventory from CSV with the columns ``label_raw``, ``text``, ``label_ocean`` and ``key``.

    Args:
        path: The file; facets are written like ``Activity Level`` or ``activity_level``.

    Raises:
        NptiError: If it cannot be read, a column is missing, or a row holds what is no statement, trait or key.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise NptiError(f"{path} is larger than {MAX_BYTES} bytes, so it is no inventory.")
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise NptiError(f"The inventory {path} cannot be read ({error.strerror}); give a CSV file.") from None
    except UnicodeDecodeError:
        raise NptiError(f"The inventory {path} is no text in UTF-8; give a CSV file.") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise NptiError(f"{path} lacks the column {missing[0]}; expected are {', '.join(COLUMNS)}.")
        items = tuple(_item(row, f"{path}, line {rows.line_num}") for row in rows)
    except csv.Error as error:
        raise NptiError(f"{path}, line {rows.line_num}: this is no CSV ({error}).") from None
    if not items:
        raise NptiError(f"{path} holds no item; one a line is expected below the columns' names.")
    return Inventory(path.name, hashlib.sha256(data).hexdigest(), items)


def _item(row: dict[str, str | None], where: str) -> Item:
    facet, text, trait, key = ((row[column] or "").strip() for column in COLUMNS)
    trait = LETTERS.get(trait, trait.lower())
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        raise NptiError(f"{where}: {text[:50]!r} is no statement of 1 to {MAX_TEXT} characters on one line.")
    if not TRAIT_NAME.fullmatch(trait):
        raise NptiError(f"{where}: {trait!r} is no trait; one of {', '.join(LETTERS)} or a trait's name is expected.")
    if key not in ("1", "+1", "-1"):
        raise NptiError(f"{where}: the key is {key!r}; 1 or -1 is expected.")
    name = "_".join(facet.lower().replace("-", " ").split())
    if name and not TRAIT_NAME.fullmatch(name):
        raise NptiError(f"{where}: {facet[:50]!r} is no name of a facet; letters, digits, blanks and - are expected.")
    return Item(text, trait, name, key == "-1")
