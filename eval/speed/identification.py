"""What counting costs: the measured pass beside a bare forward, and answers plus statistics beside the published way.

    python eval/speed/identification.py                      # npti-demo on the CPU, its own transcripts
    python eval/speed/identification.py --shape 60m          # a random Llama of 60 M parameters, the same tokens
    python eval/speed/identification.py --device cuda --shape 8b

Writes eval/results/speed_identification_MODEL_DEVICE.md and .json. The published scripts count while they decode: at
every step each layer adds its activations to a histogram of 300 bins of 0.01 over 0 to 3. Ours asks first and counts
afterwards in one forward over prompts and answers, so any engine may have written the answers.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from shapes import SHAPES, build
from timing import AGAIN, PLAIN, Speed, as_data, in_turn, now
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.find import bundled_folder
from npti_export.cli import loading
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.elicit import Transcript, read_transcripts
from npti_export.identification.measure import Row, measure, pad_rows
from npti_export.identification.neuron_counter import NeuronCounter
from npti_export.pipeline import transcripts_file
from npti_export.steering.sites import Site, find_sites

RESULTS = Path(__file__).parent.parent / "results"
BATCH = 32
BINS, STEP = 300, 0.01
"""Of the published histogram."""


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(list(SHAPES)), help="A random Llama in place of npti-demo.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of the CPU.")
@click.option("--transcripts", "count", type=click.IntRange(2), default=96, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long the rounds of one case go on.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(shape: str | None, device: str, threads: int, count: int, seconds: float, output: Path) -> None:
    torch.set_num_threads(threads)
    model, tokenizer = loading.load_model(None, device, "auto", quiet=True)
    if shape:
        model = build(shape, device)
    given = read_transcripts(transcripts_file(bundled_folder(), "extraversion"))[:count]
    sites = find_sites(model)
    tokens = sum(len(transcript.token_ids) - 1 for transcript in given)
    speeds = in_turn(
        "eager",
        "the measured pass",
        {
            PLAIN: timed(lambda: bare(model, tokenizer, given), tokens, model.device),
            "measured": timed(lambda: measure(model, tokenizer, sites, given, BATCH), tokens, model.device),
        },
        seconds,
    )
    prompts = [Prompt(transcript.question, transcript.persona) for transcript in given]
    longest = max(len(transcript.token_ids) for transcript in given)
    # Of a random model no answer ends by itself, and then all are as long as the longest.
    decoding = Decoding(max_new_tokens=longest, repetition_penalty=1.1, batch_size=BATCH)
    said = generate_answers(model, tokenizer, prompts, decoding)
    answered = [replace(t, token_ids=a.token_ids) for t, a in zip(given, said, strict=True)]
    made = sum(len(transcript.token_ids) for transcript in answered)

    def ask() -> None:
        generate_answers(model, tokenizer, prompts, decoding)

    def ask_then_measure() -> None:
        ask()
        measure(model, tokenizer, sites, answered, BATCH)

    speeds += in_turn(
        "eager",
        "answers and statistics",
        {
            PLAIN: timed(ask, made, model.device),
            "answers, then the measured pass": timed(ask_then_measure, made, model.device),
            "counted while decoding (published)": timed(lambda: counted_in_decode(sites, ask), made, model.device),
        },
        seconds,
    )
    counters = [NeuronCounter(site.width, torch.device("cpu")) for site in sites]
    about = {
        "model": f"random Llama {shape}" if shape else "npti-demo",
        "neurons": sum(site.width for site in sites),
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()}, {threads} thread(s)",
        "dtype": str(model.dtype),
        "transcripts": count,
        "answer_tokens": tokens,
        "statistics_bytes": sum(c.histogram.nbytes + sum(s.nbytes for s in c.sums.values()) for c in counters),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    output.mkdir(parents=True, exist_ok=True)
    name = f"speed_identification_{shape or 'demo'}_{device.partition(':')[0]}"
    (output / f"{name}.json").write_text(json.dumps({"about": about, "speeds": as_data(speeds)}, indent=1) + "\n")
    (output / f"{name}.md").write_text(report(about, speeds))
    click.echo((output / f"{name}.md").read_text())


def timed(work: Callable[[], object], tokens: int, device: torch.device) -> Callable[[], float]:
    """Tokens a second of a piece of work."""

    def measured() -> float:
        began = now(device)
        work()
        return tokens / (now(device) - began)

    return measured


@torch.inference_mode()
def bare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: Sequence[Transcript]) -> None:
    """The forwards of the measured pass, and nothing else."""
    rows = sorted((Row.of(transcript, tokenizer, None) for transcript in given), key=lambda row: len(row.ids))
    for begin in range(0, len(rows), BATCH):
        ids, _ = pad_rows(rows[begin : begin + BATCH])
        model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)


def counted_in_decode(sites: Sequence[Site], ask: Callable[[], None]) -> None:
    """Asks while every layer counts each step's activations: how often above 0, and a histogram above it."""
    hooks = []
    for site in sites:
        above = torch.zeros(site.width, dtype=torch.int64, device=site.device)
        histogram = torch.zeros(site.width * BINS, dtype=torch.int32, device=site.device)
        offsets = torch.arange(site.width, device=site.device) * BINS

        def count(
            _module: Any, _arguments: Any, output: Tensor, above: Any = above, into: Any = histogram, at: Any = offsets
        ) -> None:
            if output.shape[1] == 1:
                values = output[:, 0].float()
                above.add_((values > 0).sum(0))
                bins = (values / STEP).long().clamp_(0, BINS - 1) + at
                into.scatter_add_(0, bins.flatten(), torch.ones_like(bins, dtype=torch.int32).flatten())

        hooks.append(site.watch(count))
    try:
        ask()
    finally:
        for hook in hooks:
            hook.remove()


def report(about: dict[str, Any], speeds: Sequence[Speed]) -> str:
    names = {
        "the measured pass": {PLAIN: "bare forward", AGAIN: "bare forward again"},
        "answers and statistics": {PLAIN: "answers alone", AGAIN: "answers alone again"},
    }
    lines = [
        "# What counting costs",
        "",
        f"Made by `python eval/speed/identification.py` on {about['model']} ({about['neurons']:,} neurons), "
        f"{about['dtype']}, {about['device']}; {about['transcripts']} transcripts, {about['answer_tokens']:,} answer",
        f"tokens, batches of {BATCH}; statistics take {about['statistics_bytes'] / 1e6:.1f} MB. "
        + ", ".join(f"{library} {version}" for library, version in about["versions"].items())
        + ".",
        "",
        "Answer tokens a second, median over rounds in which all take turns; ratio to both baseline runs of a round,",
        "median [its 95 % interval by bootstrap over rounds]. *Again* is the second of these by the first: noise.",
    ]
    for case, of_case in names.items():
        lines += ["", f"## {case.capitalize()}", "", "| | tokens/s | ratio |", "|---|---|---|"]
        for speed in speeds:
            if speed.case == case:
                ratio = f"{speed.ratio:.3f} [{speed.low:.3f}, {speed.high:.3f}]"
                lines.append(f"| {of_case.get(speed.way, speed.way)} | {speed.tokens_per_second:,.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
