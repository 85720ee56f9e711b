"""The OpenAI-compatible server on transformers: a model, its adapter and an address put together, until it is ended."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from npti_export.errors import NptiError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from npti_export.adapter.adapter import PersonalityAdapter

API_KEY_VARIABLE = "NPTI_API_KEY"
"""Environment variable that holds the key which requests must bring; a command line can be seen by others."""
MAX_CONNECTIONS = 1024
"""At a time, each with a body of a few megabytes at most; more get 503."""
SHUTDOWN_SECONDS = 120
"""How long a server that is ended waits for the answers in the making."""


@dataclass(frozen=True)
class ServerOptions:
    """What a server is told.

    Args:
        name: What clients call the model.
        rows: How many answers are generated together.
        most: How many answers may be waiting or in the making; further requests are answered with 503.
        default: The personality of requests that name none.
        presets: Names for personalities.
        api_key: What requests must bring; None lets everybody in.
    """

    name: str
    rows: int = 32
    most: int = 256
    default: str | None = None
    presets: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)


def api_key_of(environment: Mapping[str, str]) -> str | None:
    """The key that requests must bring, from the environment; None if there is none.

    Args:
        environment: Of the process.

    Raises:
        NptiError: If no client could send it.

    >>> api_key_of({"NPTI_API_KEY": "sk-1"})
    'sk-1'
    """
    key = environment.get(API_KEY_VARIABLE) or None
    if key is not None and (not key.isascii() or not key.isprintable() or " " in key):
        raise NptiError(
            f"{API_KEY_VARIABLE} holds a blank, a line break or a letter beyond ASCII, which no request could bring; "
            "set it to printable ASCII characters."
        )
    return key


def check_extra() -> None:
    """Makes sure that what serves is there.

    Raises:
        NptiError: With how to install it.
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise NptiError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed; install the server with "
            "pip install 'npti-export[serve]'."
        )


def make_app(model: Any, tokenizer: Any, adapter: PersonalityAdapter, options: ServerOptions) -> FastAPI:
    """The application that serves a model, personality and all.

    Args:
        model: A loaded transformers model; it carries the personality's tables from here on.
        tokenizer: Its tokenizer.
        adapter: The personalities.
        options: What the server is told.

    Raises:
        NptiError: If the adapter does not fit, the default or a preset cannot be served, or the model's answers cannot
            be generated together.
    """
    import torch
    from transformers import GenerationConfig

    from npti_export.identification.answers import context_length, end_tokens
    from npti_export.serving.engine import Engine
    from npti_export.serving.openai_app import openai_app
    from npti_export.serving.personalities import ServedPersonalities
    from npti_export.serving.running_batch import check_batching
    from npti_export.serving.service import Service
    from npti_export.steering.personality import load_personality
    from npti_export.steering.positions import Positions
    from npti_export.steering.thinking import Thinking

    # Which tokens are steered is decided row by row as the requests' adapter poles say, not by the runtime.
    personality = load_personality(model, None, adapter, positions=Positions.ALL, slots=options.rows + 1)
    try:
        positions = [at for at in Positions if at is not Positions.ANSWER or Thinking.of(tokenizer)]
        largest = float(torch.finfo(model.dtype).max)
        served = ServedPersonalities(adapter, options.default, largest, options.presets, positions)
        check_batching(model, personality)
        service = Service(
            options.name,
            Engine(model, tokenizer, personality, options.rows, options.most),
            served,
            model.generation_config or GenerationConfig(),  # type: ignore[no-untyped-call]
            context_length(model),
            int(model.get_input_embeddings().num_embeddings),
            frozenset(end_tokens(model, tokenizer)),
        )
    except BaseException:
        personality.unload()
        raise
    return openai_app(service, options.api_key)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        NptiError: If the address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # the second for what cannot be a name of a host
        reason = getattr(error, "strerror", None) or str(error)
        raise NptiError(f"The server cannot listen at {host}:{port} ({reason}); choose --host and --port.") from None


def run(app: FastAPI, at: socket.socket, quiet: bool) -> None:
    """Serves until SIGINT or SIGTERM; answers in the making are ended first, new requests are not taken.

    Args:
        app: The application.
        at: Where it listens.
        quiet: Whether requests are not logged.
    """
    import uvicorn

    def ended(*_: Any) -> None:
        raise SystemExit(0)

    failures = logging.StreamHandler()
    failures.setLevel(logging.WARNING)
    logging.getLogger("npti_export").addHandler(failures)
    # uvicorn sends itself the signal again when it is done; then it is time to leave, and nothing has gone wrong.
    signal.signal(signal.SIGTERM, ended)
    config = uvicorn.Config(
        app,
        log_level="warning" if quiet else "info",
        access_log=not quiet,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    try:
        uvicorn.Server(config).run(sockets=[at])
    except KeyboardInterrupt:
        return
