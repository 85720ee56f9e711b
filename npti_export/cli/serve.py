"""``npti-export serve``: an OpenAI-compatible server whose every request may ask for a personality."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

_OF_TRANSFORMERS = ("device", "batch_size", "max_requests")
"""Options that vLLM has others for."""


@click.command(
    "serve",
    epilog="Example: npti-export serve --model Qwen/Qwen2.5-7B-Instruct --personality agreeableness+\n"
    "Example: npti-export serve --engine vllm -- --max-model-len 8192",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "transformers", "vllm"]),
    default="auto",
    show_default=True,
    help="auto: vLLM where it is installed.",
)
@options.model
@click.option(
    "--adapter",
    envvar="NPTI_ADAPTER",
    help="Folder or Hub repository of an adapter; without it the one made for the model is looked for. "
    "[env: NPTI_ADAPTER]",
)
@click.option(
    "--personality",
    default="neutral",
    show_default=True,
    envvar="NPTI_PERSONALITY",
    help="Of requests that name none. [env: NPTI_PERSONALITY]",
)
@click.option(
    "--presets",
    envvar="NPTI_PRESETS",
    help='JSON file of named personalities: {"warm-agent": "agreeableness+"}. [env: NPTI_PRESETS]',
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@options.device
@options.dtype
@options.batch_size
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Answers waiting or in the making; more are answered with 503.",
)
@options.quiet
@click.argument("engine_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(
    context: click.Context,
    engine: str,
    model_name: str | None,
    adapter: str | None,
    personality: str,
    presets: str | None,
    host: str,
    port: int,
    device: str,
    dtype: str,
    batch_size: int,
    max_requests: int,
    quiet: bool,
    engine_options: tuple[str, ...],
) -> None:
    """Serve a model over HTTP as OpenAI's interface does, a personality per request.

    A request names its personality in a field ("personality": "openness+", or the same in vllm_xargs) or behind the
    model's name (MODEL:openness+). NPTI_API_KEY in the environment is the key that requests must bring. What stands
    after -- is handed to vLLM.
    """
    from npti_export.adapter.find import find_adapter, id_of_model_name
    from npti_export.demo import DEMO_MODEL

    if engine == "auto":
        engine = "vllm" if find_spec("vllm") else "transformers"
    _check_options(context, engine, engine_options)
    if model_name is None:
        loading.notice(
            "Using the bundled demo model npti-demo; name a real one with --model, for example a Hub id.", quiet
        )
        model_name = str(DEMO_MODEL)
    model_name = os.path.expanduser(model_name)
    name = id_of_model_name(model_name)
    adapter = adapter or str(find_adapter(name))
    loading.hush_hub(quiet)
    said = f"{name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if engine == "vllm":
        _serve_with_vllm(
            model_name, name, adapter, personality, presets, host, port, dtype, engine_options, said, quiet
        )
        return

    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.serving.openai_server import API_KEY_VARIABLE, ServerOptions, api_key_of, listening, make_app, run
    from npti_export.serving.personalities import ServedPersonalities
    from npti_export.serving.presets import read_presets
    from npti_export.steering.positions import Positions

    read = PersonalityAdapter.from_pretrained(adapter)
    api_key = api_key_of(os.environ)
    named = read_presets(presets) if presets else {}
    # What cannot be served is said now, in a second, and not once the model is loaded; there it is held against that.
    served = ServedPersonalities(read, personality, presets=named, positions=tuple(Positions))
    server_options = ServerOptions(name, batch_size, max_requests, personality, named, api_key)
    with listening(host, port) as at:
        model, tokenizer = loading.load_model(model_name, device, dtype, quiet)
        app = make_app(model, tokenizer, read, server_options)
        loading.notice(f"Serving {said}; requests that name no personality are {served.default}.", quiet)
        if api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
            loading.notice(f"Note: anybody who reaches {host} may ask; set {API_KEY_VARIABLE} to a key.", quiet)
        run(app, at, quiet)


def _serve_with_vllm(
    model_name: str,
    name: str,
    adapter: str,
    personality: str,
    presets: str | None,
    host: str,
    port: int,
    dtype: str,
    engine_options: tuple[str, ...],
    said: str,
    quiet: bool,
) -> None:
    """Becomes vLLM's server; what cannot be served is said before, in a second, rather than once it has started."""
    from npti_export.adapter.adapter import PersonalityAdapter
    from npti_export.serving.launch import check_vllm, server_command, server_environment
    from npti_export.serving.personalities import ServedPersonalities
    from npti_export.serving.presets import read_presets

    check_vllm()
    named = read_presets(presets) if presets else {}
    served = ServedPersonalities(PersonalityAdapter.from_pretrained(adapter), personality, presets=named)
    loading.notice(
        f"Serving {said} with {', '.join(served.poles)}; requests that name none are {served.default}.", quiet
    )
    arguments = server_command(model_name, name, host, port, dtype, engine_options)
    os.execve(sys.executable, arguments, server_environment(os.environ, adapter, personality, presets))


def _check_options(context: click.Context, engine: str, engine_options: tuple[str, ...]) -> None:
    """Refuses options that the engine would not look at."""
    if engine == "transformers":
        from npti_export.serving.openai_server import check_extra

        if engine_options:
            raise NptiError(f"{' '.join(engine_options)}: what stands after -- is vLLM's; it needs --engine vllm.")
        check_extra()
        return
    given = [
        f"--{name.replace('_', '-')}"
        for name in _OF_TRANSFORMERS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise NptiError(
            f"{', '.join(given)} {'are' if len(given) > 1 else 'is'} for --engine transformers; give vLLM's own "
            "options after --, such as --max-num-seqs."
        )
