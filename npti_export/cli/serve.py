"""``npti-export serve``: an OpenAI-compatible server whose every request may ask for a personality."""

from __future__ import annotations

import os
import sys

import click

from npti_export.cli import loading, options


@click.command(
    "serve",
    epilog="Example: npti-export serve --model Qwen/Qwen2.5-7B-Instruct --personality agreeableness+ -- "
    "--max-model-len 8192",
    context_settings={"ignore_unknown_options": False},
)
@options.model
@options.adapter
@click.option("--personality", default="neutral", show_default=True, help="Of requests that name none.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@options.dtype
@options.quiet
@click.argument("engine_options", nargs=-1, type=click.UNPROCESSED)
def command(
    model_name: str | None,
    adapter: str | None,
    personality: str,
    host: str,
    port: int,
    dtype: str,
    quiet: bool,
    engine_options: tuple[str, ...],
) -> None:
    """Serve a model with vLLM, a personality per request.

    A request names its personality in vllm_xargs ({"personality": "openness+"}) or behind the model's name
    (MODEL:openness+). What stands after -- is handed to vLLM.
    """
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.adapter.find import find_adapter, id_of_model_name
    from npti_export.demo import DEMO_MODEL
    from npti_export.serving.launch import check_vllm, server_command, server_environment
    from npti_export.serving.personalities import ServedPersonalities

    check_vllm()
    if model_name is None:
        loading.notice(
            "Using the bundled demo model npti-demo; name a real one with --model, for example a Hub id.", quiet
        )
        model_name = str(DEMO_MODEL)
    name = id_of_model_name(model_name)
    adapter = adapter or str(find_adapter(name))
    loading.hush_hub(quiet)
    # Said here, in a second, rather than by vLLM once it has started.
    served = ServedPersonalities(PersonalityAdapter.from_pretrained(adapter), personality)
    loading.notice(
        f"Serving {name} at http://{host}:{port}/v1 with {', '.join(served.poles)}; requests that name none are "
        f"{served.default}.",
        quiet,
    )
    arguments = server_command(model_name, name, host, port, dtype, engine_options)
    os.execve(sys.executable, arguments, server_environment(os.environ, adapter, personality))
