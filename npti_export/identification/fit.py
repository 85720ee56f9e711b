"""Fit: vectors behind several layers, turned until the model without persona writes what it wrote in character.

The difference of the poles' means says where the residual stream is while the model is in character, which need not be
what brings it there. So the vectors start from that difference and go downhill on the negative log-likelihood of the
pole's own answers, behind the prompt without its persona, added as the runtime adds them: to the last token of the
prompt, which decides how an answer begins, and to the tokens that the model wrote. No weight of the model changes; an
adapter holds the vectors as it holds those of ``residual``.

Measured on npti-demo (46 questions, γ 1.5): what an answer begins with decides most of the rest. With the last token of
the prompt the vectors move neuroticism by .31 and .29, where the persona in the prompt moves it by .28 and .25; without
it, by .07 and .18.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.records import FITTED, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.identification.answers import Progress
from npti_export.identification.elicit import Transcript
from npti_export.identification.measure import Row, pad_rows
from npti_export.identification.processes import first_does
from npti_export.identification.selector import FIRST_TOKEN_TOO
from npti_export.steering.sites import decoder_layers
from npti_export.steering.thinking import Thinking
from npti_export.traits import Pole

EPOCHS = 8
"""How often each answer is gone through."""
ROWS = 10
"""Answers of a step."""
RATE = 0.1
"""Adam's first step, in units of the root mean square of the vector it starts from; it falls to 0 along a cosine."""


def fit_ways(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ways: Sequence[Sequence[TraitRecord]],
    transcripts: Sequence[Transcript],
    batch_size: int = ROWS,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> list[list[TraitRecord]]:
    """The ways to steer a trait, with those by the method ``fitted`` fitted to the answers and the others as they are.

    Where others stand beside it, a way that cannot be fitted is left out, and said so.

    Args:
        model: The model that gave the answers, unsteered.
        tokenizer: Its tokenizer.
        ways: As select made them.
        transcripts: Of both poles.
        batch_size: Rows of one forward at most; fewer take less memory.
        progress: Told how many more answers were gone through, of :func:`most_fitted` at most.
        warn: Told of what is left out.

    Raises:
        NptiError: If nothing else is to be tried, and there is no answer, or no gradient that is a finite number.
    """
    fitted: list[list[TraitRecord]] = []
    for of_list in ways:
        try:
            fitted.append([fit_way(model, tokenizer, way, transcripts, batch_size, progress) for way in of_list])
        except NptiError as error:
            if len(ways) == 1:
                raise
            warn(f"{of_list[0].name}: the method fitted is left out: {error}")
    return fitted


def most_fitted(ways: Sequence[Sequence[TraitRecord]], answers: int) -> int:
    """How many answers are gone through in fitting at most, each time counted, of so many of both poles."""
    return EPOCHS * answers * sum(_is_fitted(way) for of_list in ways for way in of_list)


def fit_way(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    way: TraitRecord,
    transcripts: Sequence[Transcript],
    batch_size: int = ROWS,
    progress: Progress | None = None,
) -> TraitRecord:
    """The trait with the vectors of both poles fitted, each to its own pole's answers; by another method, as it is.

    γ is 1 then. Where several processes share the work the first one fits, and all get what it found.

    Args:
        model: The model that gave the answers, unsteered.
        tokenizer: Its tokenizer.
        way: As select made it.
        transcripts: Of both poles.
        batch_size: Rows of one forward at most; fewer take less memory.
        progress: Told how many more answers were gone through.

    Raises:
        NptiError: If the model gives no gradient, or one that is no finite number.
    """
    if not _is_fitted(way):
        return way
    thinking = Thinking.of(tokenizer)
    poles = {}
    for pole, record in way.poles.items():
        own = [said for said in transcripts if said.pole is pole]
        rows = [behind_question(said, tokenizer, thinking, record.positions == FIRST_TOKEN_TOO) for said in own]
        start = record.residual
        assert start is not None  # the method has one
        residual = first_does(partial(fit_residual, model, rows, start, batch_size, progress))
        poles[pole] = replace(record, gamma=1.0, residual=residual)
    return replace(way, poles=poles)


def behind_question(
    said: Transcript, tokenizer: PreTrainedTokenizerBase, thinking: Thinking | None, first_token_too: bool = True
) -> Row:
    """An answer behind its question alone, its last token too; what counts is what the vectors are added to.

    That is every token that the model wrote and was fed again, so not the last one. A reasoning model's thinking does
    not count: steer such a model at positions ``answer``, since at others its thinking is steered as well.

    Args:
        said: The answer.
        tokenizer: The model's.
        thinking: The marks around its thinking, where it thinks.
        first_token_too: Whether the last token of the prompt counts, behind which the answer begins.
    """
    bare = replace(said, persona="")
    row = Row.of(bare, tokenizer, thinking)
    ids, counted = [*row.ids, *said.token_ids[-1:]], [*row.counted, *[False] * len(said.token_ids[-1:])]
    prompt = len(ids) - len(said.token_ids)
    # An answer that is only an end sign says nothing; and where the prompt opens the thinking, that begins behind it.
    if first_token_too and len(said.token_ids) > 1:
        thought = thinking is not None and bool(thinking.covers(torch.tensor([ids[:prompt]]))[0, -1])
        counted[prompt - 1] = not thought
    return Row(ids, counted)


def fit_residual(
    model: PreTrainedModel,
    answers: Sequence[Row],
    start: ResidualShift,
    batch_size: int = ROWS,
    progress: Progress | None = None,
) -> ResidualShift:
    """Moves vectors downhill on the negative log-likelihood of answers.

    Args:
        model: The unsteered model.
        answers: Of one pole, as :func:`behind_question` makes them.
        start: The vectors to start from.
        batch_size: Rows of one forward at most.
        progress: Told how many more answers were gone through.

    Returns:
        The vectors behind the same layers.

    Raises:
        NptiError: If there is no answer, or the model gives no gradient, or one that is no finite number.
    """
    sizes = [float(np.sqrt(np.square(vector, dtype=np.float64).mean())) or 1.0 for vector in start.vector]
    directions = [  # in units of their own size, so that one rate is right for all
        torch.tensor(vector / size, dtype=torch.float32, device=model.device, requires_grad=True)
        for vector, size in zip(start.vector, sizes, strict=True)
    ]
    optimiser = torch.optim.Adam(directions, lr=RATE)
    answers = [row for row in answers if any(row.counted)]
    if not answers:
        raise NptiError("There is no answer of two tokens or more at a pole, so nothing that vectors can be fitted to.")
    steps = EPOCHS * math.ceil(len(answers) / ROWS)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    rng = random.Random("fit")
    with torch.enable_grad(), _frozen(model), _added(model, start.layer.tolist(), directions, sizes) as steer:
        for _ in range(EPOCHS):
            shuffled = rng.sample(answers, len(answers))
            for begin in range(0, len(shuffled), ROWS):
                step = shuffled[begin : begin + ROWS]
                tokens = sum(sum(row.counted) for row in step)
                optimiser.zero_grad()
                for at in range(0, len(step), batch_size):
                    ids, steered = pad_rows(step[at : at + batch_size])
                    steer(steered)
                    _backward(_nll(model, ids.to(model.device), steered))
                for direction in directions:
                    assert direction.grad is not None
                    direction.grad /= tokens  # here and not before: in float16 small numbers would be lost on the way
                    if not bool(direction.grad.isfinite().all()) or not bool(direction.grad.any()):
                        raise NptiError(
                            "The gradient that vectors are fitted by is no finite number, or 0; load the model in "
                            "another --dtype, or take another --method."
                        )
                optimiser.step()
                falling.step()
                if progress:
                    progress(len(step))
    pairs = zip(directions, sizes, strict=True)
    vectors = [direction.detach().cpu().numpy() * size for direction, size in pairs]
    return ResidualShift(start.layer, np.stack(vectors).astype(np.float32))


def _is_fitted(way: TraitRecord) -> bool:
    return way.poles[Pole.HIGH].method.name == FITTED


def _nll(model: PreTrainedModel, ids: Tensor, steered: Tensor) -> Tensor:
    """Negative log-likelihood of what follows the steered tokens, in nats, summed."""
    logits = model(input_ids=ids, use_cache=False).logits
    where = steered[:, :-1].to(logits.device)
    return F.cross_entropy(logits[:, :-1][where].float(), ids[:, 1:].to(logits.device)[where], reduction="sum")


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise NptiError(
                "The memory does not hold the gradient that vectors are fitted by; take a smaller --batch-size."
            ) from error
        raise NptiError(
            f"Vectors are fitted by a gradient, and this model gives none ({str(error).splitlines()[0]}); load it "
            "without quantised weights, or take another --method."
        ) from error


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Keeps what is needed for the gradients of the weights from being stored: that is most of the memory."""
    wanting = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)


@contextmanager
def _added(
    model: nn.Module, numbers: Sequence[int], directions: Sequence[Tensor], sizes: Sequence[float]
) -> Iterator[Callable[[Tensor], None]]:
    """Adds vectors behind layers, on the tokens that the function it gives is told of before each forward."""
    layers = decoder_layers(model)[1]
    told: list[Tensor] = []

    def adding(direction: Tensor, size: float) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_layer: nn.Module, _arguments: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            added = told[-1][..., None].to(stream) * (direction * size).to(stream)
            return (stream + added, *output[1:]) if isinstance(output, tuple) else stream + added

        return hook

    def steer(steered: Tensor) -> None:
        told[:] = [steered]

    hooks = [
        layers[number].register_forward_hook(adding(direction, size))
        for number, direction, size in zip(numbers, directions, sizes, strict=True)
    ]
    try:
        yield steer
    finally:
        for hook in hooks:
            hook.remove()
