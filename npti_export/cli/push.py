"""``npti-export push``: an adapter to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError


@click.command("push", epilog="Example: npti-export push adapters/Qwen--Qwen2.5-7B-Instruct --repo me/qwen-personality")
@click.argument("adapter", type=click.Path(path_type=Path), required=False)
@click.option("--repo", help="user/name; <you>/<base model>-personality unless given.")
@click.option("--private", is_flag=True, help="A new repository is private.")
@click.option("--dry-run", is_flag=True, help="Check the adapter and show what would go up.")
@options.model
@options.quiet
def command(
    adapter: Path | None, repo: str | None, private: bool, dry_run: bool, model_name: str | None, quiet: bool
) -> None:
    """Put an adapter on the Hugging Face Hub: config, tensors and model card, nothing else.

    ADAPTER is its folder; without it the one made for the model is looked for. Log in first with 'hf auth login', or
    set HF_TOKEN.
    """
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import DEMO_ID, find_adapter, id_of_model_name

    folder = adapter or find_adapter(id_of_model_name(model_name) if model_name else DEMO_ID)
    if not folder.is_dir():
        raise NptiError(f"There is no folder {folder}; identify writes adapters into adapters/<model>.")
    loaded = PersonalityAdapter.from_pretrained(folder)
    files = [
        folder / name for name in ("README.md", "config.json", *(f"{trait}.safetensors" for trait in loaded.traits))
    ]
    loading.notice(f"{loaded!r}", quiet)
    for file in files:
        click.echo(f"{file.stat().st_size:10,} bytes  {file.name}")
    if dry_run:
        return
    click.echo(loaded.push_to_hub(repo or _default_repo(loaded.base_model.id), private=private))


def _default_repo(base_model_id: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        user = HfApi().whoami()["name"]
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError):
        raise NptiError("You are not logged in to the Hub; run 'hf auth login', or set HF_TOKEN.") from None
    return f"{user}/{base_model_id.split('/')[-1]}-personality"
