"""Asks a model by a method, and keeps the answers, so that a run that was broken off goes on with what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import BaseModel
from npti_export.errors import NptiError
from npti_export.evaluation.kept_answers import KeptAnswers, adapter_digest, what_decides
from npti_export.evaluation.methods import Method
from npti_export.identification.answers import Answer, Decoding, Progress, generate_answers
from npti_export.identification.files import digest
from npti_export.steering.personality import load_personality
from npti_export.steering.sites import describe_base_model, find_sites
from npti_export.steering.thinking import Thinking
from npti_export.traits import PersonalitySpec, Term


class Asker:
    """A model, how its answers are decoded, and the answers that are there already.

    Args:
        model: The base model, unsteered; it is that again after every call.
        tokenizer: Its tokenizer.
        decoding: The same for every method.
        keep_in: A JSON-lines file of answers: what it holds is not asked again. None keeps nothing.
        positions: Which tokens are steered, over the adapters' own choice.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        keep_in: Path | None = None,
        positions: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.base_model: BaseModel = describe_base_model(model, find_sites(model))
        self.positions = positions
        self._kept = KeptAnswers(keep_in)
        self._decides = what_decides(model, tokenizer, self.base_model, decoding)

    def ask(
        self, method: Method, term: Term, questions: Sequence[str], seed: int, progress: Progress | None = None
    ) -> list[Answer]:
        """Asks all questions by a method.

        Args:
            method: How.
            term: The personality that the method's adapter is to play, at strength 1; the method's own strength counts.
            questions: What is asked.
            seed: Decides which persona a question gets.
            progress: Told how many more answers are there.

        Raises:
            NptiError: If an adapter does not fit the model, a prompt fills its context, or answers cannot be kept.
        """
        prompts = method.prompts(questions, seed)
        strength = 1.0 if method.strength is None else method.strength
        spec = PersonalitySpec((replace(term, strength=strength),))
        alone = None if method.steering is None else _alone(method.steering, term)
        steered = None if alone is None else (str(spec), adapter_digest(alone), self.positions)
        key = digest(self._decides, [asdict(prompt) for prompt in prompts], steered, lora_digest(method.lora))

        def asked() -> list[Answer]:
            if alone is not None:
                thinking = Thinking.of(self.tokenizer)
                with load_personality(self.model, spec, alone, positions=self.positions, thinking=thinking):
                    return generate_answers(self.model, self.tokenizer, prompts, self.decoding, progress)
            if method.lora is not None:
                with with_lora(self.model, method.lora) as tuned:
                    return generate_answers(tuned, self.tokenizer, prompts, self.decoding, progress)
            return generate_answers(self.model, self.tokenizer, prompts, self.decoding, progress)

        return self._kept.given_or(key, len(prompts), progress, asked)


@contextmanager
def with_lora(model: PreTrainedModel, folder: Path) -> Iterator[PreTrainedModel]:
    """The model with a PEFT adapter on it; the very modules that were there stand there again afterwards.

    Args:
        model: The base model.
        folder: What PEFT saved.

    Raises:
        NptiError: If PEFT is not installed, or the folder is none of its or made for another model.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise NptiError("A LoRA needs the package peft; install npti-export[peft], or leave --lora out.") from None
    if not (folder / "adapter_config.json").is_file():
        raise NptiError(f"{folder} is no PEFT folder (it holds no adapter_config.json).")
    try:
        tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise NptiError(f"The PEFT adapter in {folder} does not fit the model ({reason}).") from None
    try:
        yield cast(PreTrainedModel, tuned)
    finally:
        tuned.unload()


def lora_digest(folder: Path | None) -> str | None:
    """Hash over the files of a PEFT folder."""
    if folder is None:
        return None
    files = sorted(path for path in folder.glob("adapter_*") if path.is_file())
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


def library_versions() -> dict[str, str]:
    """Of what decides answers and scores."""
    import numpy
    import sklearn
    import transformers

    import npti_export

    modules = {"npti-export": npti_export, "torch": torch, "transformers": transformers}
    modules |= {"numpy": numpy, "scikit-learn": sklearn}
    return {name: str(module.__version__) for name, module in modules.items()}


def _alone(adapter: PersonalityAdapter, term: Term) -> PersonalityAdapter:
    """Only the trait asked for: dense parts of others need not be looked for."""
    return PersonalityAdapter(adapter.base_model, {term.trait: adapter.traits[term.trait]})
