"""``identify`` on a tiny chat model, as tests call it, in their own process or in one that is killed."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import torch
from chat_models import tiny_chat_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from npti_export.evaluation.dose import calibration
from npti_export.identification.questions import HELD_BACK
from npti_export.pipeline import Identified, identify
from npti_export.traits import Pole
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DOSES = (0.35, 0.7, 1.4)
"""Fewer than the package tries: tests that find doses do so again and again."""


def chat_model(seed: int = 0, name: str = "tests/tiny-chat") -> LlamaForCausalLM:
    """A tiny chat model whose answers are short: punctuation ends them."""
    model = tiny_chat_model(seed, context=48, name=name)
    model.generation_config.eos_token_id = [1, *TOKENIZER.convert_tokens_to_ids(list(string.punctuation))]
    return model


def questions(trait: str, count: int = 6) -> list[Question]:
    return [Question(trait, f"{trait[:1].upper()}{at}?", facet=f"facet {at % 3}") for at in range(count + HELD_BACK)]


def many_questions(trait: str) -> list[Question]:
    return questions(trait, 60)


def personas(trait: str) -> list[Persona]:
    return [Persona(trait, pole, f"{pole.value} {trait[:5]} {at}") for pole in Pole for at in range(3)]


def run(
    folder: Path, traits: str | list[str] = "openness", model: LlamaForCausalLM | None = None, **options: object
) -> Identified:
    with patch.multiple(calibration, DOSES=DOSES, DOSES_BY_MEAN=DOSES):
        return identify(
            model or chat_model(),
            TOKENIZER,
            traits,
            folder,
            **{"questions": questions, "personas": personas, "batch_size": 8, **options},  # type: ignore[arg-type]
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_in_process(folder: Path, said: Connection) -> None:
    """Two traits of 26 questions each; sends a mark at every step of progress, and where a stage begins and ends."""
    torch.set_num_threads(1)

    @contextmanager
    def stage(_what: str, _steps: int) -> Iterator[Callable[[int], None]]:
        said.send(None)
        yield lambda _done: said.send(None)
        said.send(None)

    run(folder, ["openness", "neuroticism"], questions=some_questions, stage=stage)


def some_questions(trait: str) -> list[Question]:
    return questions(trait, 26)
