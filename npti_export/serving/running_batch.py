"""Answers that are generated together: rows join and leave between two tokens, each with a personality of its own.

One forward feeds one token of every row. The cache is padded on the left, so that the newest token of all rows is the
last column; a row that joins brings the cache of its prompt, one that leaves takes its own along.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from npti_export.errors import NptiError
from npti_export.steering.personality import Personality
from npti_export.steering.positions import Positions
from npti_export.steering.thinking import Thinking
from npti_export.traits import NEUTRAL, PersonalitySpec

ALIKE = {torch.float32: 1e-3}
"""How far, relative to their spread, a row's logits may lie from those of a forward by itself. Over 26 families the
largest was 1e-6, in bfloat16 0.011; a model whose tokens are placed otherwise was off by 0.9."""
ALIKE_16_BIT = 0.1


@dataclass(eq=False)
class Row:
    """One answer in the making.

    Args:
        ids: Tokens of the prompt and of the answer so far; all but the last are in the cache of its batch.
        prompt_length: How many of them are the prompt.
        spec: The personality.
        positions: Which of the tokens it steers.
        thinking: The marks of the thinking, which positions ``answer`` leaves alone.
    """

    ids: list[int]
    prompt_length: int
    spec: PersonalitySpec = NEUTRAL
    positions: Positions = Positions.GENERATED
    thinking: Thinking | None = None
    _open: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for token in self.ids:
            self._look(token)

    def add(self, token: int) -> None:
        """Appends a generated token."""
        self.ids.append(token)
        self._look(token)

    @property
    def spec_of_prompt(self) -> PersonalitySpec:
        """The personality of all tokens of the prompt but the last."""
        return self.spec if self.positions is Positions.ALL else NEUTRAL

    @property
    def spec_of_last(self) -> PersonalitySpec:
        """The personality of the last token, as input of the next forward."""
        if len(self.ids) == self.prompt_length:
            return self.spec if self.positions in (Positions.ALL, Positions.LAST_PROMPT) else NEUTRAL
        return NEUTRAL if self.positions is Positions.ANSWER and self._open else self.spec

    def _look(self, token: int) -> None:
        # The last mark decides, as in Thinking.covers: the opening one is thinking, the closing one is not.
        if self.thinking and token in (self.thinking.begin, self.thinking.end):
            self._open = token == self.thinking.begin


class RunningBatch:
    """Rows that are fed together.

    Args:
        model: A decoder-only transformers model whose layers keep keys and values of all tokens.
        personality: Its tables, loaded with positions ``all``: which tokens are steered is decided here, row by row.
    """

    def __init__(self, model: nn.Module, personality: Personality) -> None:
        self.rows: list[Row] = []
        self._model: Any = model
        self._personality = personality
        self._device = next(model.parameters()).device
        self._parameters = inspect.signature(self._model.forward).parameters
        self._cache: Any = None
        self._mask = torch.empty(0, 0)
        self._specs: tuple[PersonalitySpec, ...] = ()
        self._steered = ExitStack()

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Takes rows in: all tokens of theirs but the last go through the model, in one forward.

        If that fails (a long prompt may take more memory than there is), the rows that were there are as they were.
        """
        width = max(1, *(len(row.ids) - 1 for row in rows))
        # Filled up on the left with a token of the row's own, which the mask hides.
        ids = torch.tensor([[row.ids[0]] * (width + 1 - len(row.ids)) + row.ids[:-1] for row in rows])
        mask = torch.tensor([[0] * (width + 1 - len(row.ids)) + [1] * (len(row.ids) - 1) for row in rows])
        mask = mask.to(self._device)
        cache = DynamicCache()
        self._steer([row.spec_of_prompt for row in rows])
        self._forward(ids.to(self._device), mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if self.rows:
            self._append(cache, mask)
        else:
            self._cache, self._mask = cache, mask
        self.rows = [*self.rows, *rows]

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Feeds the last token of every row; the caller adds one to each before the next step.

        Returns:
            The logits of the tokens that come next, [rows, vocabulary].
        """
        self._steer([row.spec_of_last for row in self.rows])
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._device)
        places = torch.tensor([[len(row.ids) - 1] for row in self.rows], device=self._device)
        return self._forward(ids, self._mask, places, self._cache)

    @torch.inference_mode()
    def leave(self, leaving: Sequence[Row]) -> None:
        """Lets rows go, and with them the columns of the cache that nobody needs any more."""
        stay = [at for at, row in enumerate(self.rows) if row not in leaving]
        if not stay:
            self.clear()
            return
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in stay]
        unused = self._mask.shape[1] - max(len(row.ids) - 1 for row in self.rows)
        kept = torch.tensor(stay, device=self._device)
        self._mask = self._mask[kept, unused:]
        for layer in self._filled(self._cache):
            layer.keys = layer.keys[kept.to(layer.keys.device), :, unused:]
            layer.values = layer.values[kept.to(layer.values.device), :, unused:]

    def clear(self) -> None:
        """Lets all rows go."""
        self.rows, self._cache, self._mask = [], None, torch.empty(0, 0)
        self._specs = ()
        self._steered.close()

    def _steer(self, specs: list[PersonalitySpec]) -> None:
        if tuple(specs) != self._specs:
            self._specs = ()
            self._steered.close()
            self._steered.enter_context(self._personality.using(specs))
            self._specs = tuple(specs)

    def _forward(self, ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> Tensor:
        known = {"position_ids": places, "logits_to_keep": 1}
        arguments = {name: value for name, value in known.items() if name in self._parameters}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **arguments)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _append(self, cache: Any, mask: Tensor) -> None:
        """Puts rows below those that are there, both padded to the same width."""
        width = max(mask.shape[1], self._mask.shape[1])
        both = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])

        def joined(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat([pad(one, (0, 0, width - one.shape[-2], 0)) for one in (mine, theirs)])

        layers = list(zip(self._filled(self._cache), self._filled(cache), strict=True))
        states = [(joined(mine.keys, new.keys), joined(mine.values, new.values)) for mine, new in layers]
        self._mask = both
        for (mine, _), (keys, values) in zip(layers, states, strict=True):
            mine.keys, mine.values = keys, values

    @staticmethod
    def _filled(cache: Any) -> list[Any]:
        """The layers of a cache that hold something; some models share those of others."""
        return [layer for layer in cache.layers if layer.keys is not None]


@torch.inference_mode()
def check_batching(model: nn.Module, personality: Personality) -> None:
    """Makes sure that a row's logits are those of the row by itself, whoever joins and leaves beside it.

    Three rows of different lengths join one after the other and one leaves; each step is held against forwards without
    a cache. A model that keeps another state than keys and values, or places its tokens otherwise, shows here.

    Raises:
        NptiError: If they are not.

    >>> from transformers import AutoModelForCausalLM
    >>> from npti_export import load_personality
    >>> from npti_export.demo import DEMO_MODEL
    >>> model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    >>> with load_personality(model, None, positions="all") as personality:
    ...     check_batching(model, personality)
    """
    kind = type(model).__name__
    limit = ALIKE.get(next(model.parameters()).dtype, ALIKE_16_BIT)
    batch = RunningBatch(model, personality)
    try:
        furthest = max(_differences(model, batch))
    except NptiError:
        raise
    except Exception as error:  # a cache of another kind may fail anywhere
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
        raise NptiError(
            f"Answers of {kind} cannot be generated together by this server ({reason}); serve it with --engine vllm."
        ) from None
    finally:
        batch.clear()
    if not furthest <= limit:
        raise NptiError(
            f"{kind} does not give the same logits in a batch as alone (they differ by {furthest:.2g} of their spread, "
            f"at most {limit:g} was expected), so it cannot be served by this server; use --engine vllm."
        )


def _differences(model: nn.Module, batch: RunningBatch) -> list[float]:
    config: Any = model.config
    vocabulary = int(config.get_text_config().vocab_size)
    tokens = torch.randint(vocabulary, (3, 8), generator=torch.Generator().manual_seed(0)).tolist()
    long, short, late = (Row(ids[:length], length) for ids, length in zip(tokens, (7, 1, 4), strict=True))
    found: list[float] = []

    def step() -> None:
        logits = batch.step()
        for row, got in zip(batch.rows, logits.float(), strict=True):
            alone = (
                model(input_ids=torch.tensor([row.ids], device=logits.device), use_cache=False).logits[0, -1].float()
            )
            found.append(float((got - alone).norm() / (alone - alone.mean()).norm()))
            row.add(int(alone.argmax()))

    batch.join([long, short])
    step()
    step()
    batch.join([late])
    step()
    batch.leave([long])
    step()
    step()
    return found
