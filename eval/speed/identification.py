"""What counting costs: the measured pass beside a bare forward, and answers plus statistics beside the published way.

    python eval/speed/identification.py                      # npti-demo on the CPU, its own transcripts
    python eval/speed/identification.py --shape 60m          # a random Llama of 60 M parameters, the same tokens
    python eval/speed/identification.py --device cuda --shape 8b

Writes eval/results/speed_identification_MODEL_DEVICE.md and .json. The published scripts count while they decode
(published_identification.py). Ours asks first and counts afterwards in one forward over prompts and answers, so any
engine may have written the answers. The whole time from command to adapter is from_command_to_adapter.py's.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from peak_memory import Peak, peak_of
from published_identification import counting_in_decode
from shapes import SHAPES, build
from timing import AGAIN, PLAIN, Speed, as_data, in_turn, now
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.find import bundled_folder
from npti_export.cli import loading
from npti_export.identification.answers import Decoding, Prompt, generate_answers
from npti_export.identification.elicit import Transcript, read_transcripts
from npti_export.identification.measure import Row, measure, pad_rows
from npti_export.identification.neuron_counter import NeuronCounter
from npti_export.pipeline import transcripts_file
from npti_export.steering.sites import find_sites

RESULTS = Path(__file__).parent.parent / "results"
BATCH = 32
STATIC = "answers alone, static cache"


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

    def ask_and_count() -> None:
        with counting_in_decode(model, tokenizer, sites) as counts:
            ask()
        counts.read()

    speeds += in_turn(
        "eager",
        "answers and statistics",
        {
            PLAIN: timed(ask, made, model.device),
            "answers, then the measured pass": timed(ask_then_measure, made, model.device),
            "counted while decoding (published)": timed(ask_and_count, made, model.device),
            STATIC: timed(lambda: ask_with_static_cache(model, ask), made, model.device),
        },
        seconds,
    )
    peaks = {
        "bare forward": peak_of(lambda: bare(model, tokenizer, given), model.device),
        "measured": peak_of(lambda: measure(model, tokenizer, sites, given, BATCH), model.device),
    }
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
    record = {
        "about": about,
        "speeds": as_data(speeds),
        "peak_memory": {way: peak and asdict(peak) for way, peak in peaks.items()},
    }
    (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / f"{name}.md").write_text(report(about, speeds, peaks))
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


def ask_with_static_cache(model: PreTrainedModel, ask: Callable[[], object]) -> None:
    """Asks with a cache that is made as long as it may get at once, eagerly as the others: never compiled."""
    settings: Any = model.generation_config
    before = settings.cache_implementation, settings.disable_compile
    settings.cache_implementation, settings.disable_compile = "static", True
    try:
        ask()
    finally:
        settings.cache_implementation, settings.disable_compile = before


def report(about: dict[str, Any], speeds: Sequence[Speed], peaks: Mapping[str, Peak | None]) -> str:
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
        _of_static_cache(next(speed for speed in speeds if speed.way == STATIC)),
    ]
    for case, of_case in names.items():
        lines += ["", f"## {case.capitalize()}", "", "| | tokens/s | ratio |", "|---|---|---|"]
        for speed in speeds:
            if speed.case == case:
                ratio = f"{speed.ratio:.3f} [{speed.low:.3f}, {speed.high:.3f}]"
                lines.append(f"| {of_case.get(speed.way, speed.way)} | {speed.tokens_per_second:,.0f} | {ratio} |")
    return "\n".join([*lines, "", "## Peak memory", "", *_of_memory(peaks)]) + "\n"


def _of_memory(peaks: Mapping[str, Peak | None]) -> list[str]:
    """One pass of each over all batches."""
    rows = [
        f"| {way} | {peak.before / 1e6:,.1f} | {peak.above / 1e6:,.1f} |"
        for way, peak in peaks.items()
        if peak is not None
    ]
    if not rows:
        return ["This system does not tell it: it is read off `/proc/self`, which only Linux has."]
    return [
        "One pass of each over all batches: what was held before it (on a GPU by torch; on a CPU by the process, its",
        "libraries too, as far as it is resident), and the most above that while it ran.",
        "",
        "| | MB before | MB above |",
        "|---|---|---|",
        *rows,
    ]


def _of_static_cache(speed: Speed) -> str:
    """What the measurement says of it: identify asks with the cache that grows."""
    found = "was slower" if speed.high < 1 else "was faster" if speed.low > 1 else "was no faster and no slower"
    return f"A static cache, eager, {found} than the one that grows, with which `identify` asks."


if __name__ == "__main__":
    main()
