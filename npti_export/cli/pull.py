"""``npti-export pull``: an adapter from the Hugging Face Hub into a folder where it is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from npti_export.cli import loading, options


@click.command("pull", epilog="Example: npti-export pull me/qwen-personality --trait openness")
@click.argument("repo")
@click.option("--revision", help="Branch, tag or commit.")
@options.trait
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write; unless given, the user's own adapters, where it is found for its base model.",
)
@options.quiet
@options.as_json
def command(
    repo: str, revision: str | None, traits: tuple[str, ...], output: Path | None, quiet: bool, as_json: bool
) -> None:
    """Fetch an adapter, or some of its traits, from the Hugging Face Hub.

    REPO is user/name. Traits are added to, or replaced in, an adapter of the same base model that is there already.
    Whoever loads it later needs no --adapter. Private repositories need 'hf auth login', or HF_TOKEN.
    """
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import adapter_folder_name, cache_folder
    from npti_export.adapter.hub import fetch_adapter
    from npti_export.identification.selection import adapter_in

    loading.hush_hub(quiet)
    wanted = [trait.lower() for trait in traits] or None
    fetched = fetch_adapter(repo, revision=revision, traits=wanted)
    pulled = PersonalityAdapter.from_pretrained(fetched, traits=wanted)
    folder = output or cache_folder() / adapter_folder_name(pulled.base_model.id)
    there = adapter_in(folder, pulled.base_model, list(pulled.traits))
    joined = replace(pulled, base_model=there.base_model, traits={**there.traits, **pulled.traits})
    joined.save_pretrained(folder)
    traits_there = ", ".join(pulled.traits)
    loading.notice(f"{repo} at {fetched.name[:12]}: personalities of {pulled.base_model.id} ({traits_there})", quiet)
    if as_json:
        found = {"folder": str(folder), "commit": fetched.name, "traits": list(pulled.traits)}
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(folder)
