"""Text piece by piece: the pieces are the whole, characters stay whole, stop strings end it however they are cut."""

from __future__ import annotations

import pytest
from chat_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from npti_export.serving.answer_text import AnswerText

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is one byte, so that most characters take several."""
    tokenizer = Tokenizer(models.BPE({byte: at for at, byte in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def of_words() -> PreTrainedTokenizerFast:
    """A tokenizer that drops the blank before the first word of a text, as those of SentencePiece do."""
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "three": 2, "?": 3}, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def pieces(text: AnswerText, tokens: list[int]) -> list[str]:
    said = []
    for token in tokens:
        said.append(text.add(token))
        if text.stopped:
            break
    return [*said, text.end()]


def test_a_character_is_shown_when_it_is_whole(of_bytes) -> None:
    said = "naïve 😀 – 日本"
    shown = pieces(AnswerText(of_bytes), of_bytes(said)["input_ids"])
    assert "".join(shown) == said
    assert "😀" in shown
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_a_broken_character_is_shown_at_the_end_as_what_it_is(of_bytes) -> None:
    tokens = of_bytes("a😀")["input_ids"][:-1]
    assert "".join(pieces(AnswerText(of_bytes), tokens)) == of_bytes.decode(tokens)


def test_the_blanks_between_words_are_those_of_the_whole(of_words) -> None:
    tokens = [0, 1, 2, 1]
    assert "".join(pieces(AnswerText(of_words), tokens)) == of_words.decode(tokens) == "one twothree two"


def test_the_pieces_of_real_text_are_the_whole(demo_model_folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    said = "I think it's 3 o'clock –  let's go,\n\nshall we? Élan vital 🙂!"
    tokens = tokenizer(said)["input_ids"]
    assert "".join(pieces(AnswerText(tokenizer), tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_special_tokens_are_not_text() -> None:
    tokenizer = tiny_tokenizer()
    assert "".join(pieces(AnswerText(tokenizer), tokenizer("ab<|end|>c")["input_ids"])) == "abc"


def test_a_special_token_between_words_takes_no_blank_along(of_words) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=of_words.backend_tokenizer, eos_token="<end>", clean_up_tokenization_spaces=False
    )
    end = tokenizer.eos_token_id
    tokens = [end, 0, end, end, 1, end]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces(AnswerText(tokenizer), tokens)) == whole == "one two"


@pytest.mark.parametrize(
    ("stops", "expected", "stopped"),
    [
        (["stop"], "one ", True),
        (["x", "e s"], "on", True),
        (["op", "sto"], "one ", True),
        (["stoppages"], "one stop, two", False),
        (["o"], "", True),
        (["two!"], "one stop, two", False),
        (["two"], "one stop, ", True),
    ],
)
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(stops: list[str], expected: str, stopped: bool) -> None:
    tokenizer = tiny_tokenizer()  # one token a character: every stop string is cut
    text = AnswerText(tokenizer, stops)
    assert ("".join(pieces(text, tokenizer("one stop, two")["input_ids"])), text.stopped) == (expected, stopped)


def test_nothing_is_held_back_without_need() -> None:
    tokenizer = tiny_tokenizer()
    assert pieces(AnswerText(tokenizer, ["bad"]), tokenizer("abab")["input_ids"]) == ["a", "", "", "ba", "b"]
