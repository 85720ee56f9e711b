"""vLLM with the plugin under load for minutes: does a request ever get another's personality, does memory grow?

    make soak-vllm

or, in an environment with vLLM, `python eval/vllm_soak.py --minutes 10`. Several clients ask for random personalities
of npti-demo (or of `--model` and `--adapter`); now and then one goes away in the middle of its answer. Every answer is
held against the same request's when it was asked alone. Writes vllm_soak.md into eval/results/, and fails on a wrong
answer or on growth of memory.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import click
import openai
from transformers import AutoTokenizer

from npti_export.adapter.find import find_adapter, id_of_model_name
from npti_export.demo import DEMO_MODEL
from npti_export.serving.launch import check_vllm, server_command, server_environment
from npti_export.serving.settings import ServingSettings
from npti_export.traits import Pole
from npti_export.traits.material import shipped_questions

RESULTS = Path("eval/results")
NAME = "soaked"
REQUESTS = 160
"""How many different ones there are; each is asked alone first."""
TOLERANCE = 1e-4
"""Nats between two float32 log-probabilities of the same token; batches of other sizes sum in another order."""
WARM_UP = 0.2
"""Share of the time after which memory may not grow any more."""
GROWTH = 0.02
"""Of the memory of all processes of the server; what allocators keep wobbles by about half of that."""
ABANDONED = 0.02
"""Share of requests whose client goes away."""
START_SECONDS = 900


@dataclass(frozen=True)
class Request:
    """A prompt's tokens, the personality that is asked for, and how many tokens to generate."""

    prompt: tuple[int, ...]
    personality: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """Tokens, their log-probabilities, and how far the second choice was behind each."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]

    def differs(self, alone: Answer) -> bool:
        """Whether it is another than the one given alone; after a tie within the tolerance texts may go apart."""
        if len(self.tokens) != len(alone.tokens):
            return True
        for mine, theirs, at, there, margin in zip(
            self.tokens, alone.tokens, self.logprobs, alone.logprobs, alone.margins, strict=True
        ):
            if abs(at - there) > TOLERANCE:
                return True
            if mine != theirs:
                return margin > TOLERANCE
        return False


@dataclass
class Tally:
    """What was counted; several threads add to it."""

    answered: int = 0
    abandoned: int = 0
    tokens: int = 0
    wrong: tuple[str, ...] = ()


def drawn_requests(settings: ServingSettings, model: str, count: int) -> list[Request]:
    """Questions with random personalities of one to three traits; every fifth is asked neutrally."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [question.text for trait in settings.adapter.traits for question in shipped_questions(trait, "test")]
    draw, requests = random.Random(0), []
    served = settings.personalities()
    while len(requests) < count:
        traits = draw.sample(sorted(settings.adapter.traits), draw.randint(1, min(3, len(settings.adapter.traits))))
        terms = [f"{trait}{draw.choice(list(Pole)).sign}{draw.uniform(0.2, 1.3):.2f}" for trait in traits]
        personality = str(served.check("neutral" if len(requests) % 5 == 0 else ",".join(terms)))
        chat = [{"role": "user", "content": draw.choice(texts)}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        requests.append(Request(tuple(ids), personality, draw.randint(8, 64)))
    return requests


def ask(client: openai.OpenAI, request: Request) -> Answer:
    done = client.completions.create(
        model=NAME,
        prompt=list(request.prompt),
        max_tokens=request.max_tokens,
        temperature=0,
        logprobs=2,
        extra_body=options_of(request),
    )
    told: Any = done.choices[0].logprobs
    choices = [sorted(at.values(), reverse=True) for at in told.top_logprobs]
    return Answer(tuple(told.tokens), tuple(told.token_logprobs), tuple(at[0] - at[1] for at in choices))


def abandon(client: openai.OpenAI, request: Request) -> None:
    """Reads the first piece of an answer and goes away."""
    stream = client.completions.create(
        model=NAME, prompt=list(request.prompt), max_tokens=64, stream=True, extra_body=options_of(request)
    )
    next(iter(stream))
    stream.close()


def options_of(request: Request) -> dict[str, object]:
    return {
        "ignore_eos": True,
        "return_tokens_as_token_ids": True,
        "vllm_xargs": {"personality": request.personality},
    }


def soak(
    client: openai.OpenAI, alone: dict[Request, Answer], seed: int, until: Event, tally: Tally, lock: Lock
) -> None:
    """One client: asks for random ones of the requests until it is told to stop."""
    draw, requests = random.Random(seed), list(alone)
    while not until.is_set():
        request = draw.choice(requests)
        if draw.random() < ABANDONED:
            abandon(client, request)
            with lock:
                tally.abandoned += 1
            continue
        answer = ask(client, request)
        with lock:
            tally.answered += 1
            tally.tokens += len(answer.tokens)
            if answer.differs(alone[request]):
                tally.wrong += (request.personality,)


def memory_of(process: int) -> float:
    """Resident memory of a process and all that it started, in MiB (Linux)."""
    parents: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has ended
        number = int(fields["Pid"])
        parents.setdefault(int(fields["PPid"]), []).append(number)
        resident[number] = int(fields.get("VmRSS", "0 kB").split()[0])
    family, found = [process], 0
    while family:
        number = family.pop()
        found += resident.get(number, 0)
        family += parents.get(number, [])
    return found / 1024


@contextmanager
def server(model: str, adapter: str, log: Path) -> Iterator[tuple[openai.OpenAI, int]]:
    """vLLM with the plugin, compiled as it is by default: a client and the number of its process."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    options = ["--max-model-len", "256", "--max-num-seqs", "8", "--block-size", "32"]
    command = server_command(model, NAME, "127.0.0.1", port, "float32", options)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= server_environment(os.environ, adapter, "neutral")
    with log.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)
    try:
        began = time.monotonic()
        while True:
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise SystemExit(f"The server did not start:\n{log.read_text()[-4000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), process.pid
        if process.poll() is not None:
            raise SystemExit(f"The server ended:\n{log.read_text()[-4000:]}")
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def growth(samples: Sequence[tuple[float, float]], seconds: float) -> tuple[float, float]:
    """Memory after the warm-up and at the end: medians over a fifth of the time each."""
    after = [mib for at, mib in samples if WARM_UP <= at / seconds < 2 * WARM_UP]
    end = [mib for at, mib in samples if at / seconds >= 1 - WARM_UP]
    return statistics.median(after), statistics.median(end)


@click.command()
@click.option("--model", default=str(DEMO_MODEL), show_default=True, help="Folder or Hub id.")
@click.option("--adapter", help="Folder or Hub repository; without it the one made for the model is looked for.")
@click.option("--minutes", type=click.FloatRange(0.5), default=10.0, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True)
def main(model: str, adapter: str | None, minutes: float, clients: int) -> None:
    """Soak vLLM with the plugin and write what was seen."""
    check_vllm()
    os.environ["NPTI_ADAPTER"] = adapter or str(find_adapter(id_of_model_name(model)))
    requests = drawn_requests(ServingSettings.from_environment(), model, REQUESTS)
    log = Path(tempfile.mkstemp(".log")[1])
    with server(model, os.environ["NPTI_ADAPTER"], log) as (client, process):
        click.echo(f"The server is up (its log: {log}); asking {len(requests)} requests alone.")
        alone = {request: ask(client, request) for request in requests}
        different = len({answer.tokens for answer in alone.values()})
        click.echo(f"{different} different answers; {clients} clients for {minutes:g} minutes.")
        tally, lock, until, samples, began = Tally(), Lock(), Event(), [], time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            try:
                running = [pool.submit(soak, client, alone, seed, until, tally, lock) for seed in range(clients)]
                while (at := time.monotonic() - began) < 60 * minutes and not any(one.done() for one in running):
                    samples.append((at, memory_of(process)))
                    time.sleep(2)
            finally:
                until.set()
            for one in running:
                one.result()
        again = sum(ask(client, request).differs(alone[request]) for request in requests[:20])
    after, end = growth(samples, 60 * minutes)
    lines = [
        "# vLLM with the plugin under load",
        "",
        f"`python eval/vllm_soak.py --minutes {minutes:g}` on {id_of_model_name(model)}: {clients} clients, "
        f"{REQUESTS} requests with {len({request.personality for request in requests})} personalities of which 8 are "
        "in a step at once, float32, compiled, prefix cache on.",
        "",
        "| | |",
        "|---|---|",
        f"| answered | {tally.answered:,} requests, {tally.tokens:,} tokens |",
        f"| clients that went away in the middle | {tally.abandoned:,} |",
        f"| answers other than alone | {len(tally.wrong)} |",
        f"| other than alone when asked alone afterwards, of 20 | {again} |",
        f"| memory of all processes after {WARM_UP:.0%} of the time | {after:,.0f} MiB |",
        f"| at the end | {end:,.0f} MiB ({end / after - 1:+.1%}) |",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "vllm_soak.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))
    if tally.wrong or again or end > after * (1 + GROWTH) or not tally.answered:
        click.echo(f"Failed; wrong: {sorted(set(tally.wrong))[:10]}", err=True)
        sys.exit(1)
    log.unlink()


if __name__ == "__main__":
    main()
