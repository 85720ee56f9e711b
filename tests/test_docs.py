"""What the documents say can be done: their links lead somewhere, their commands and options exist, their Python is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_lines import check_command_line

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
BY_NAME = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}


def anchors(text: str) -> set[str]:
    """The names that a forge gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", list(BY_NAME))
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BY_NAME[name]):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", BY_NAME["docs/README.md"]))
    assert linked == {path.name for path in DOCS} - {"README.md"}
    assert "(docs/README.md)" in BY_NAME["README.md"]


@pytest.mark.parametrize("name", list(BY_NAME))
def test_commands_have_the_options_that_are_shown(name: str) -> None:
    """Lines of code that begin with the command, or that start it as a module."""
    for line in re.findall(r"^ *(?:npti-export|[^|`\n]* -m npti_export) (.+)$", BY_NAME[name], re.MULTILINE):
        check_command_line(line)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_python_is_python(name: str) -> None:
    for block in re.findall(r"```(?:py|python)\n(.*?)```", BY_NAME[name], re.DOTALL):
        compile(block, name, "exec")
