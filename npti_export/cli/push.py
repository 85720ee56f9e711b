"""``npti-export push``: an adapter to the Hugging Face Hub."""

from __future__ import annotations

import stat
from pathlib import Path

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

YOU = "you"
"""Stands for the user in a dry run, which asks nobody."""
MAX_TRANSCRIPTS_BYTES = 100_000_000
"""More answers than this of one trait are no transcripts: a hundred questions at two poles make 0.3 MB."""


@click.command("push", epilog="Example: npti-export push adapters/Qwen--Qwen2.5-7B-Instruct --repo me/qwen-personality")
@click.argument("adapter", type=click.Path(path_type=Path), required=False)
@click.option("--repo", help="user/name; <you>/<base model>-personality unless given.")
@click.option("--private", is_flag=True, help="A new repository is private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request on a repository that is there.")
@click.option("--branch", help="Push to this branch, made from main if it is not there.")
@click.option("--dry-run", is_flag=True, help="Check the adapter and show what would go up; nobody is asked.")
@click.option("--with-transcripts", is_flag=True, help="The answers that the neurons were found with go up, too.")
@click.option("--replace-card", is_flag=True, help="Write over a model card that was edited by hand on the Hub.")
@options.model
@options.quiet
def command(
    adapter: Path | None,
    repo: str | None,
    private: bool,
    create_pr: bool,
    branch: str | None,
    dry_run: bool,
    with_transcripts: bool,
    replace_card: bool,
    model_name: str | None,
    quiet: bool,
) -> None:
    """Put an adapter on the Hugging Face Hub in one commit: config, tensors and model card, nothing else.

    ADAPTER is its folder; without it the one last written for the model is taken. What goes up is shown first. Log in
    with 'hf auth login', or set HF_TOKEN.
    """
    if create_pr and branch:
        raise click.UsageError("A pull request is one to main; leave out --create-pr or --branch.")
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.card import is_generated
    from npti_export.adapter.files import CARD_NAME
    from npti_export.adapter.find import DEMO_ID, id_of_model_name, last_written_adapter
    from npti_export.adapter.hub import default_name, full_name, upload_adapter
    from npti_export.adapter.leaks import check_nothing_private

    folder = adapter or last_written_adapter(id_of_model_name(model_name) if model_name else DEMO_ID)
    if not folder.is_dir():
        raise NptiError(f"There is no folder {folder}; identify writes adapters into adapters/<model>.")
    loaded = PersonalityAdapter.from_pretrained(folder)
    loading.hush_hub(quiet)
    name = repo or default_name(loaded.base_model.id)
    address = full_name(name) if not dry_run else name if "/" in name else f"{YOU}/{name}"
    contents = loaded.contents(address)
    if with_transcripts:
        contents |= {file: data for trait in loaded.traits for file, data in _transcripts(folder, trait).items()}
    check_nothing_private(contents)

    traits = ", ".join(loaded.traits)
    loading.notice(f"Personalities of {loaded.base_model.id} ({traits}) from {folder} to {address}:", quiet)
    listing = [f"{len(contents[file]):12,} bytes  {file}" for file in sorted(contents, key=_place)]
    listing += [f"{sum(map(len, contents.values())):12,} bytes  in {len(contents)} files"]
    card = contents[CARD_NAME].decode(errors="replace")
    if dry_run:
        click.echo("\n".join([*listing, "", card.rstrip("\n")]))
        return
    loading.notice("\n".join([*listing, "", card]), quiet)
    uploaded = upload_adapter(
        contents, address, private=private, create_pr=create_pr, branch=branch, replace_card=replace_card
    )
    if uploaded.card_kept:
        loading.notice("The model card on the Hub was edited by hand and is kept; --replace-card replaces it.", quiet)
    elif not is_generated(contents[CARD_NAME]):
        loading.notice(f"{folder / CARD_NAME} was edited by hand and went up as it is; without it one is made.", quiet)
    click.echo(uploaded.address)


def _place(file: str) -> tuple[bool, str]:
    """Card and config come first, then the tensors, then what lies deeper."""
    return file not in ("README.md", "config.json"), file


def _transcripts(folder: Path, trait: str) -> dict[str, bytes]:
    """A trait's transcripts by their place in the repository; nothing else that lies beside them, and no link."""
    from npti_export.adapter.files import read_bytes

    name = f"transcripts/{trait}.jsonl"
    path = folder / name
    try:
        links = any(stat.S_ISLNK(part.lstat().st_mode) for part in (path.parent, path))
    except OSError:
        raise NptiError(f"There are no transcripts {path}; leave out --with-transcripts.") from None
    if links:
        raise NptiError(f"{path} is a link, which may lead anywhere; put the file itself there.")
    return {name: read_bytes(path, MAX_TRANSCRIPTS_BYTES)}
