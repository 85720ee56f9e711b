"""The published identification, written anew: every question is asked, counted while decoding; the dose is a constant.

    python eval/speed/published_identification.py --trait extraversion --output FOLDER

At every step of decoding each layer adds its activations to a histogram of 300 bins of 0.01 over 0 to 3, and nothing
says when it is enough. Answers, batches and thresholds are those of ``npti-export identify``. Dense models only. Writes
an adapter, the transcripts and what was counted, as from_command_to_adapter.py compares them with ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export import PersonalityAdapter
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.published import PAPER_GAMMA
from npti_export.adapter.records import Identification, Method, PoleRecord, TraitRecord
from npti_export.cli import loading, options
from npti_export.identification.answers import Prompt, end_tokens, generate_answers
from npti_export.identification.elicit import IDENTIFICATION_DECODING, Transcript, transcript_of, write_transcripts
from npti_export.identification.files import TraitFiles
from npti_export.identification.questions import Material
from npti_export.identification.select import choose, neuron_numbers
from npti_export.identification.selector import Selector
from npti_export.steering.sites import Site, describe_base_model, find_sites, neurons_per_layer
from npti_export.traits import TRAITS, Pole
from npti_export.traits.material import shipped_personas, shipped_questions

BINS, STEP = 300, 0.01
"""Of the published histogram: what is below 0 is in the first bin, and what is above 3 in the last."""
ALL_QUESTIONS = 10_000
"""More than any trait has."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted over the generated tokens of one pole's answers, for all N neurons of all layers.

    Args:
        tokens: How many there were.
        active: On how many of them the activation was above 0, int64 [N].
        histogram: Tokens in each bin, int32 [N, 300].
    """

    tokens: int
    active: NDArray[np.int64]
    histogram: NDArray[np.int32]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Share of tokens on which the activation was above 0, float64 [N]."""
        return self.active / max(1, self.tokens)

    @property
    def target(self) -> NDArray[np.float32]:
        """Middle of the bin of the 95th percentile, float32 [N]; 0 in the first bin, which holds all below 0 too."""
        rank = max(1, math.ceil(Selector.percentile / 100 * self.tokens))
        at = (np.cumsum(self.histogram, axis=1) < rank).sum(axis=1)
        return np.where(at > 0, (at + 0.5) * STEP, 0.0).astype(np.float32)

    def write(self, folder: Path, pole: Pole) -> None:
        """Writes them beside an adapter."""
        np.savez(folder / f"{pole}.npz", tokens=self.tokens, active=self.active, histogram=self.histogram)

    @staticmethod
    def read(folder: Path, pole: Pole) -> Counts:
        """Reads what :meth:`write` wrote."""
        with np.load(folder / f"{pole}.npz") as kept:
            return Counts(int(kept["tokens"]), kept["active"], kept["histogram"])


class LiveCounts:
    """The same while the model decodes, on its device.

    Args:
        sites: The model's feed-forward activations.
        device: Of the ids.
    """

    def __init__(self, sites: Sequence[Site], device: torch.device) -> None:
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.active = [torch.zeros(site.width, dtype=torch.int64, device=site.device) for site in sites]
        self.histograms = [torch.zeros(site.width * BINS, dtype=torch.int32, device=site.device) for site in sites]

    def read(self) -> Counts:
        """What was counted so far."""
        histograms = [histogram.view(-1, BINS).cpu().numpy() for histogram in self.histograms]
        active = np.concatenate([of_site.cpu().numpy() for of_site in self.active])
        return Counts(int(self.tokens), active, np.concatenate(histograms))


@contextmanager
def counting_in_decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sites: Sequence[Site]
) -> Iterator[LiveCounts]:
    """Counts at every step of decoding that is done inside; rows whose answer has ended count no more."""
    counts = LiveCounts(sites, model.device)
    ends = torch.tensor(sorted(end_tokens(model, tokenizer)), device=model.device)
    speaking: list[Tensor] = []  # which rows of the step still speak, bool [rows]; none while a prompt is read

    def begin_step(_model: nn.Module, _arguments: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"]
        if ids.shape[1] > 1:
            speaking.clear()
            return
        before = speaking[0] if speaking else torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        speaking[:] = [before & ~torch.isin(ids[:, 0], ends)]
        counts.tokens += speaking[0].sum()

    def counting(width: int, active: Tensor, histogram: Tensor) -> Any:
        offsets = torch.arange(width, device=active.device) * BINS

        def count(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            if speaking:
                values = output.view(-1, width).float()
                counts_row = speaking[0].to(values.device)[:, None]
                active.add_(((values > 0) & counts_row).sum(0))
                bins = (values / STEP).long().clamp_(0, BINS - 1) + offsets
                histogram.scatter_add_(0, bins.flatten(), counts_row.expand_as(bins).int().flatten())

        return count

    hooks: list[Any] = [model.register_forward_pre_hook(begin_step, with_kwargs=True)]
    for site, active, histogram in zip(sites, counts.active, counts.histograms, strict=True):
        hooks.append(site.watch(counting(site.width, active, histogram)))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def select_published(
    own: Counts, opposite: Counts, widths: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Neurons of a pole by the paper's thresholds.

    Args:
        own: Of the pole's answers.
        opposite: Of the other pole's.
        widths: Number of neurons of each layer.

    Returns:
        Flat numbers of the chosen neurons, int64 [chosen], and of all neurons delta and target, float32 [N].
    """
    delta = (own.probability - opposite.probability).astype(np.float32)
    target = own.target
    return choose(Selector(), widths, delta, target > 0, np.zeros_like(delta)), delta, target


@click.command(help=__doc__)
@options.model
@options.device
@click.option("--trait", type=click.Choice(list(TRAITS)), default="extraversion", show_default=True)
@click.option("--questions", type=click.IntRange(5), default=ALL_QUESTIONS, help="At each pole; all unless given.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(model_name: str | None, device: str, trait: str, questions: int, output: Path) -> None:
    model, tokenizer = loading.load_model(model_name, device, "auto", quiet=False)
    sites = find_sites(model)
    layers = neurons_per_layer(sites)
    loading.notice(f"Counting {sum(layer.total for layer in layers):,} neurons in {BINS} bins each.")
    # The questions that identify holds back for the dose are left out, so that both ask the same.
    planned = Material.of(shipped_questions(trait, "identification"), shipped_personas(trait), questions, 0).planned
    counts: dict[Pole, Counts] = {}
    transcripts: list[Transcript] = []
    with loading.stage(f"{trait}: ask and count while decoding", len(planned)) as progress:
        for pole in Pole:
            of_pole = [(question, persona) for question, persona in planned if persona.pole is pole]
            prompts = [Prompt(question.text, persona.text) for question, persona in of_pole]
            with counting_in_decode(model, tokenizer, sites) as live:
                answers = generate_answers(model, tokenizer, prompts, IDENTIFICATION_DECODING, progress)
            counts[pole] = live.read()
            transcripts += [transcript_of(*asked, answer) for asked, answer in zip(of_pole, answers, strict=True)]
    widths = tuple(layer.total for layer in layers)
    layer, _, index = neuron_numbers(layers)
    poles = {}
    for pole in Pole:
        chosen, delta, target = select_published(counts[pole], counts[pole.opposite], widths)
        shift = Method().shift(PAPER_GAMMA, target[chosen], delta[chosen])
        neurons = NeuronSet(layer[chosen], index[chosen], shift, target[chosen], delta[chosen])
        poles[pole] = PoleRecord(neurons, PAPER_GAMMA)
    tokens = {str(pole): of_pole.tokens for pole, of_pole in counts.items()}
    record = TraitRecord(trait, poles, Identification(transcripts=len(transcripts), tokens=tokens))
    PersonalityAdapter(describe_base_model(model, sites), {trait: record}).save_pretrained(output)
    write_transcripts(TraitFiles(output, trait).transcripts, transcripts)
    for pole, of_pole in counts.items():
        of_pole.write(output, pole)


if __name__ == "__main__":
    main()
