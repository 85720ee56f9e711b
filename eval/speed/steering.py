"""What steering costs in tokens a second: decoding and reading, eager and compiled, beside other ways and libraries.

    python eval/speed/steering.py                                  # a 60 M-parameter Llama on the CPU
    python eval/speed/steering.py --device cuda --shape 8b         # on a GPU, with CUDA graphs

Writes eval/results/speed_SHAPE_DEVICE.md and .json. Peers (requirements.txt) are measured by the Python of `--peers`,
if there is one. The personality moves a tenth of all neurons up and caps a tenth, at every token: `positions="all"`,
so that the prompt costs too, which is not steered by default.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from published import steer
from shapes import SHAPES, build, twin
from timing import AGAIN, PLAIN, Speed, as_data, decoding, in_turn, reading
from transformers import CompileConfig, LlamaForCausalLM

from npti_export import PersonalityAdapter, load_personality
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method, PoleRecord, TraitRecord
from npti_export.steering.personality import Personality
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.traits import Pole

RESULTS = Path(__file__).parent.parent / "results"
TRAIT, SHARE = "openness", 0.1
PROMPT = 8
"""Tokens of the prompts before what is decoded."""
READ = (4, 128)
"""Rows and tokens of what is read."""
MIXED = ["openness+", None, "openness-", "openness+0.5"]
"""The personalities of a mixed batch, over and over."""


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="60m", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of the CPU.")
@click.option("--batch", "batches", type=int, multiple=True, default=[1, 8, 64], show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Decoded a row.")
@click.option("--seconds", default=60.0, show_default=True, help="How long the rounds of one case go on.")
@click.option("--compiled/--eager-only", default=True, show_default=True)
@click.option("--peers", type=click.Path(path_type=Path), default=".venv-peers/bin/python", show_default=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(
    shape: str,
    device: str,
    threads: int,
    batches: Sequence[int],
    tokens: int,
    seconds: float,
    compiled: bool,
    peers: Path,
    output: Path,
) -> None:
    torch.set_num_threads(threads)
    plain = build(shape, device)
    adapter = random_adapter(plain)
    by_index = twin(plain)
    steer(by_index, adapter, TRAIT)
    steered = twin(plain)
    speeds: list[Speed] = []
    with load_personality(steered, None, adapter, positions="all") as personality:
        check_all_steer(plain, steered, by_index, personality)
        bench = Bench(plain, steered, by_index, personality, tokens, seconds)
        for mode in ("eager", *(["compiled"] if compiled else [])):
            for batch in batches:
                click.echo(f"{mode}, batch {batch}", err=True)
                speeds += bench.decode(mode, batch)
            speeds += bench.read(mode)
        switch = switching(personality)
    others = measure_peers(peers, shape, device, threads, batches, tokens, seconds)
    about = {
        "model": f"random Llama {shape}, {sum(p.numel() for p in plain.parameters()) / 1e6:.0f} M parameters",
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()}, {threads} thread(s)",
        "dtype": str(plain.dtype),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    data = {"about": about, "speeds": as_data(speeds), "switching": switch, "peers": others}
    output.mkdir(parents=True, exist_ok=True)
    name = f"speed_{shape}_{device.partition(':')[0]}"
    (output / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (output / f"{name}.md").write_text(report(about, speeds, switch, others))
    click.echo((output / f"{name}.md").read_text())


class Bench:
    """The models and what is run on them.

    Args:
        plain: Unsteered.
        steered: The same parameters with a personality's tables.
        by_index: The same parameters in the published scripts' way.
        personality: That of ``steered``.
        tokens: Decoded a row.
        seconds: How long the rounds of one case go on.
    """

    def __init__(
        self,
        plain: LlamaForCausalLM,
        steered: LlamaForCausalLM,
        by_index: LlamaForCausalLM,
        personality: Personality,
        tokens: int,
        seconds: float,
    ) -> None:
        self.models = {PLAIN: plain, "published scripts' way": by_index}
        self.steered, self.personality = steered, personality
        self.tokens, self.seconds = tokens, seconds
        random = torch.Generator().manual_seed(1)
        self.ids = torch.randint(1, plain.config.vocab_size, (512, 512), generator=random).to(plain.device)

    def decode(self, mode: str, batch: int) -> list[Speed]:
        forget_compiled()
        ways = compiling(self.ids.device) if mode == "compiled" else {}
        ids = self.ids[:batch, :PROMPT]
        measures = {
            name: partial(decoding, model.generate, ids, self.tokens, **ways) for name, model in self.models.items()
        }
        measures |= self.with_personalities(batch, partial(decoding, self.steered.generate, ids, self.tokens, **ways))
        return in_turn(mode, f"decode, batch {batch}", measures, self.seconds)

    def read(self, mode: str) -> list[Speed]:
        forget_compiled()
        rows, length = READ
        ids = self.ids[:rows, :length]

        def call(model: LlamaForCausalLM) -> Callable[..., Any]:
            return torch.compile(model) if mode == "compiled" else model

        measures = {name: partial(reading, call(model), ids) for name, model in self.models.items()}
        measures |= self.with_personalities(rows, partial(reading, call(self.steered), ids))
        return in_turn(mode, f"prefill, {rows} × {length}", measures, self.seconds)

    def with_personalities(self, rows: int, measure: Callable[[], float]) -> dict[str, Callable[[], float]]:
        """The same measurement neutral, with one personality, and with one a row."""

        def under(spec: str | list[str | None] | None) -> float:
            self.personality.set(spec)
            return measure()

        ways: dict[str, Callable[[], float]] = {
            "neutral": partial(under, None),
            "one personality": partial(under, MIXED[0]),
        }
        if rows > 1:
            ways["mixed batch"] = partial(under, [MIXED[row % len(MIXED)] for row in range(rows)])
        return ways


def forget_compiled() -> None:
    """Makes every case compile for itself.

    The models share their forward's code, of which torch.compile keeps eight variants: without this, three models at
    three batch sizes ran into that, and the last ones were measured uncompiled.
    """
    torch._dynamo.reset()


def compiling(device: torch.device) -> dict[str, Any]:
    """What makes ``generate`` compile its forward, with CUDA graphs on a GPU."""
    config = CompileConfig(mode="reduce-overhead" if device.type == "cuda" else "default")
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def random_adapter(model: LlamaForCausalLM) -> PersonalityAdapter:
    """One trait whose poles have each a tenth of all neurons, no two the same; moved so little that text stays text."""
    random = np.random.default_rng(0)
    base_model = describe_base_model(model, find_sites(model))
    width = base_model.neurons_per_layer[0].dense
    order = random.permutation(base_model.num_neurons)
    count = int(SHARE * base_model.num_neurons)
    poles = {}
    for pole, chosen in ((Pole.HIGH, order[:count]), (Pole.LOW, order[count : 2 * count])):
        layer, index = np.divmod(np.sort(chosen), width)
        target, delta = np.full(count, 0.1, np.float32), np.full(count, 0.2, np.float32)
        shift = Method().shift(1.4, target, delta)
        poles[pole] = PoleRecord(
            NeuronSet(layer.astype(np.int16), index.astype(np.int32), shift, target, delta), gamma=1.4
        )
    return PersonalityAdapter(base_model, {}).with_trait(TraitRecord(TRAIT, poles))


@torch.no_grad()
def check_all_steer(
    plain: LlamaForCausalLM, steered: LlamaForCausalLM, by_index: LlamaForCausalLM, personality: Personality
) -> None:
    """Nothing is measured that does nothing: both ways move the logits, and to the same place."""
    ids = torch.arange(1, 17, device=plain.device)[None]
    personality.set(MIXED[0])
    unsteered, ours, theirs = (model(ids).logits.float() for model in (plain, steered, by_index))
    if torch.allclose(ours, unsteered, rtol=1e-3) or not torch.allclose(ours, theirs, rtol=0.05, atol=0.05):
        raise SystemExit("the ways that are compared do not do the same thing")


def switching(personality: Personality) -> dict[str, float]:
    """Microseconds to switch to a personality that has a slot, and to another strength; medians."""
    both = [MIXED[0], "openness-"]
    for spec in both:
        personality.set(spec)
    return {
        "set": microseconds([partial(personality.set, both[at % 2]) for at in range(2000)]),
        "strength": microseconds([partial(setattr, personality, "strength", 0.5 + at / 512) for at in range(64)]),
    }


def microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median call's time."""
    times = []
    for call in calls:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e6


def measure_peers(
    python: Path, shape: str, device: str, threads: int, batches: Sequence[int], tokens: int, seconds: float
) -> dict[str, Any] | None:
    """What peers.py prints in its environment; None where there is none."""
    if not python.exists():
        return None
    sizes = ["--batches", *map(str, batches), "--tokens", tokens, "--seconds", seconds, "--threads", threads]
    command = [python, Path(__file__).parent / "peers.py", "--shape", shape, "--device", device, *sizes]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        click.echo(f"peers could not be measured (exit {done.returncode})", err=True)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def report(
    about: dict[str, Any], speeds: Sequence[Speed], switch: dict[str, float], others: dict[str, Any] | None
) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# What steering costs",
        "",
        f"Made by `python eval/speed/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}`".rstrip(" `") + "`.",
        f"{about['model']}, {about['dtype']}, {about['device']}; {versions}.",
        "",
        "Tokens a second, median over rounds in which all ways take turns. In brackets the ratio to the two unsteered",
        "runs of the same round, median [its 95 % interval by bootstrap over rounds]; *unsteered again* is the second",
        "of these runs by the first: how far it is from 1 is noise.",
    ]
    for mode in dict.fromkeys(speed.mode for speed in speeds):
        lines += ["", f"## {mode.capitalize()}", "", *table([speed for speed in speeds if speed.mode == mode])]
    lines += [
        "",
        "## Switching",
        "",
        f"`set` to a personality that has a slot: {switch['set']:.0f} µs. Another strength, which is written into the",
        f"tables: {switch['strength'] / 1000:.2f} ms.",
    ]
    if others:
        theirs = [Speed(**speed) for speed in others["speeds"]]
        versions = ", ".join(f"{name} {version}" for name, version in others["versions"].items())
        lines += [
            "",
            "## Peers",
            "",
            "The same model, a vector added to the residual stream behind every layer; ratios",
        ]
        lines += [f"to unsteered in their own environment ({versions}).", "", *table(theirs)]
    return "\n".join(lines) + "\n"


def table(speeds: Sequence[Speed]) -> list[str]:
    """Ways down, cases across."""
    cases = list(dict.fromkeys(speed.case for speed in speeds))
    found = {(speed.way, speed.case): speed for speed in speeds}
    lines = [f"| | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    first = [PLAIN, AGAIN]
    for way in [*first, *dict.fromkeys(speed.way for speed in speeds if speed.way not in first)]:
        cells = [cell(found.get((way, case))) for case in cases]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def cell(speed: Speed | None) -> str:
    if speed is None:
        return "–"
    rate = f"{speed.tokens_per_second:,.0f}" if speed.tokens_per_second >= 100 else f"{speed.tokens_per_second:.1f}"
    return rate if speed.way == PLAIN else f"{rate} ({speed.ratio:.3f} [{speed.low:.3f}, {speed.high:.3f}])"


if __name__ == "__main__":
    main()
