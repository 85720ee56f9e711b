"""An answer's text while its tokens come in: what may be shown already, and whether a stop string has been reached."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Turns tokens into text piece by piece; the pieces together are the answer.

    A piece is held back while its last character is not whole (one character may take several tokens), and while it
    might be the beginning of a stop string.

    Args:
        tokenizer: The model's.
        stops: Strings that end the answer and are not part of it.

    >>> from transformers import AutoTokenizer
    >>> from npti_export.demo import DEMO_MODEL
    >>> tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    >>> text = AnswerText(tokenizer, stops=[" two"])
    >>> "".join(text.add(token) for token in tokenizer("one two")["input_ids"]) + text.end(), text.stopped
    ('one', True)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._held = ""
        # Tokens that the next ones are decoded together with, because some tokenizers drop the first blank of a text.
        self._context: list[int] = []
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """Takes the next token and returns what may be shown now."""
        self._new.append(token)
        text = self._decoded()
        return "" if text.endswith(_BROKEN) else self._shown(text)

    def end(self) -> str:
        """Returns what was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._shown(self._decoded())
        return text if self.stopped else text + self._held

    def _decoded(self) -> str:
        """Text of the new tokens."""
        if not self._new:
            return ""
        before = str(self._tokenizer.decode(self._context, skip_special_tokens=True)) if self._context else ""
        both = str(self._tokenizer.decode(self._context + self._new, skip_special_tokens=True))
        return both[len(before) :]

    def _shown(self, text: str) -> str:
        """Takes text as whole and returns what of it, and of what was held, is no beginning of a stop string."""
        if text or not self._context:  # special tokens are no text, and the blank behind them must not be dropped
            self._context = self._new
        self._new = []
        self._held += text
        reached = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if reached:
            self.stopped = True
            shown, self._held = self._held[: min(reached)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop string begins with."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
