"""``npti-export new-trait``: a file for a trait of one's own, checked, and drafted by a chat model if one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.traits.trait_file import OwnTrait

FACETS = 6
"""Facets of the template, as many as the shipped traits have."""


@click.command("new-trait", epilog="Example: npti-export new-trait formality --draft-url http://localhost:8000/v1")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), help="The file; NAME.toml unless given.")
@click.option(
    "--draft-url",
    help="Base URL of an OpenAI-compatible server that drafts the personas and questions that the file lacks (key from "
    "OPENAI_API_KEY).",
)
@click.option("--draft-model", help="The server's name of the model; the only one it has unless given.")
@options.quiet
@options.as_json
def command(
    name: str, output: Path | None, draft_url: str | None, draft_model: str | None, quiet: bool, as_json: bool
) -> None:
    """Write a file for a trait of your own, and say what it lacks and what to look at again.

    The first time it writes a commented template: describe the two ends and the facets there. From then on it checks
    the file, which it leaves alone; with --draft-url it fills in the personas and questions that are missing, facet by
    facet and topic by topic, for you to edit. `identify --trait-file` and `eval --trait-file` take the file.
    """
    from npti_export.identification.files import write_beside
    from npti_export.traits.flags import flags, missing
    from npti_export.traits.trait_file import read_trait_file, trait_toml

    if draft_model and not draft_url:
        raise click.UsageError("--draft-model is the name that a server has; name that with --draft-url.")
    path = output or Path(f"{name}.toml")
    if not path.exists():
        write_beside(path, trait_toml(template(name)).encode())
        said = "Describe the two ends and the facets there, then run this again."
        click.echo(json.dumps({"file": str(path), "new": True}) if as_json else f"Written to {path}. {said}")
        return
    own = read_trait_file(path)
    if own.trait.name != name:
        raise NptiError(f"{path} defines {own.trait.name}, not {name}; name it so, or choose another --output.")
    if draft_url:
        own = drafted(own, path, draft_url, draft_model, quiet)
    looked_at, lacking = flags(own), missing(own, least_questions())
    if as_json:
        click.echo(json.dumps(summary(path, own, looked_at, lacking), indent=2, ensure_ascii=False))
        return
    personas = ", ".join(f"{len(own.personas_of(pole))} {pole}" for pole in _poles())
    click.echo(
        f"{path}: {len(own.trait.facets)} facets, personas {personas}, {len(own.questions)} questions, "
        f"{len(own.test_questions)} test questions."
    )
    for text, reason in looked_at.items():
        click.echo(f"Look again: {text!r} {reason}")
    for lack in lacking:
        click.echo(f"Missing: {lack}")
    if not lacking:
        click.echo(f"Ready: npti-export identify --trait-file {path}")


def template(name: str) -> OwnTrait:
    """A trait with everything still to be said.

    Raises:
        NptiError: If it cannot be called so.
    """
    from npti_export.traits import TRAIT_NAME, TRAITS, Facet, Trait
    from npti_export.traits.trait_file import OwnTrait

    if not TRAIT_NAME.fullmatch(name) or name == "neutral" or name in TRAITS:
        raise NptiError(
            f"A trait cannot be called {name!r}; small letters, digits and _ are expected, from a letter on, and "
            f"neither neutral nor a shipped trait ({', '.join(TRAITS)})."
        )
    return OwnTrait(Trait(name, "", "", tuple(Facet(f"facet_{at}", "", "") for at in range(1, FACETS + 1))))


def drafted(own: OwnTrait, path: Path, url: str, model: str | None, quiet: bool) -> OwnTrait:
    """The trait with personas and questions drafted, and written back; the file as it was is kept as NAME.toml.bak.

    Raises:
        NptiError: If the server is lost, or the file cannot be written.
    """
    from npti_export.identification.draft import draft, requests_of
    from npti_export.identification.endpoint import Endpoint
    from npti_export.identification.files import write_beside
    from npti_export.traits.flags import flags
    from npti_export.traits.trait_file import trait_toml

    steps = requests_of(own)
    if not steps:
        loading.notice(f"{path} lacks nothing that could be drafted.", quiet)
        return own
    kept = path.with_name(f".{path.name}.replies")
    with loading.stage(f"{own.trait.name}: drafts", steps, quiet) as progress:
        filled = draft(own, Endpoint(url, model), kept, progress)
    write_beside(path.with_name(f"{path.name}.bak"), path.read_bytes())
    write_beside(path, trait_toml(filled, flags(filled)).encode())
    kept.unlink(missing_ok=True)
    return filled


def least_questions() -> int:
    """How many questions identification needs."""
    from npti_export.identification.questions import HELD_BACK, LEAST_QUESTIONS

    return HELD_BACK + LEAST_QUESTIONS


def summary(path: Path, own: OwnTrait, looked_at: dict[str, str], lacking: list[str]) -> dict[str, Any]:
    """What the file holds, for ``--json``."""
    return {
        "file": str(path),
        "facets": len(own.trait.facets),
        "personas": {str(pole): len(own.personas_of(pole)) for pole in _poles()},
        "questions": len(own.questions),
        "test_questions": len(own.test_questions),
        "look_again": looked_at,
        "missing": lacking,
    }


def _poles() -> list[Any]:
    from npti_export.traits import Pole

    return list(Pole)
