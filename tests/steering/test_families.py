"""Every family of models, steered and held against plain forward hooks; docs/families.md is written from this list."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import DENSE, REFUSED, Family, check, refusal, table
from mixtures import MIXTURES, Mixture, check_mixture

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "families.md"


@pytest.mark.parametrize(
    "family", [pytest.param(family, id=family.name, marks=[] if family.fast else pytest.mark.slow) for family in DENSE]
)
def test_steered_like_plain_hooks_and_restored(family: Family) -> None:
    assert check(family) == "equal"


@pytest.mark.parametrize(
    ("mixture", "implementation"),
    [
        pytest.param(mixture, way, id=f"{mixture.name}-{way}", marks=[] if way == mixture.fast else pytest.mark.slow)
        for mixture in MIXTURES
        for way in mixture.implementations
    ],
)
def test_mixtures_steered_like_experts_written_anew_and_restored(mixture: Mixture, implementation: str) -> None:
    assert check_mixture(mixture, implementation) == "equal"


@pytest.mark.parametrize(
    ("name", "reason", "sizes"),
    [
        pytest.param(*case, id=case[0], marks=[] if case[0] in ("Mamba", "Rwkv") else pytest.mark.slow)
        for case in REFUSED
    ],
)
def test_refused_by_name_with_the_reason(name: str, reason: str, sizes: dict[str, object]) -> None:
    sentence = refusal(name, sizes)
    assert sentence.startswith(name.removesuffix("Text"))
    assert "cannot be steered" in sentence
    assert reason in sentence


@pytest.mark.slow
def test_document_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == table()
