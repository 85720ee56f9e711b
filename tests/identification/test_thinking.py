"""A reasoning model's thinking is in a transcript's tokens, not in its text, and is not counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat_models import tiny_chat_model, tiny_tokenizer

from npti_export.identification.answers import Decoding, Prompt, generate_answers, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.identification.measure import measure
from npti_export.steering.sites import find_sites
from npti_export.steering.thinking import Thinking
from npti_export.traits import Pole

TOKENIZER = tiny_tokenizer()
BEGIN, END = (int(number) for number in TOKENIZER.convert_tokens_to_ids(["{", "}"]))


@pytest.fixture
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Braces are the marks."""
    monkeypatch.setattr(Thinking, "of", classmethod(lambda cls, _tokenizer: cls(BEGIN, END)))


@pytest.mark.usefixtures("_marks")
@pytest.mark.parametrize(
    ("question", "said", "counted"),
    [
        ("Tea?", "{ab}cdef.", [3, 4, 5, 6, 7]),
        ("Tea?", "ab.", [0, 1]),
        ("Te{a?", "ab}cd.", [2, 3, 4]),  # opened by the prompt
        ("T{e}a?", "a{b}{c}def.", [0, 3, 6, 7, 8, 9]),
        ("Tea?", "{abc.", []),  # broken off while it thought
    ],
)
def test_thinking_is_not_counted(question: str, said: str, counted: list[int]) -> None:
    model = tiny_chat_model()
    tokens = tuple(TOKENIZER(said)["input_ids"])
    transcript = Transcript("openness", Pole.HIGH, question, "You dream.", said, tokens, True)
    other = Transcript("openness", Pole.HIGH, "Who?", "You dream.", "xyz.", tuple(TOKENIZER("xyz.")["input_ids"]), True)
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.act_fn.register_forward_hook(lambda *given: seen.append(given[-1])) for layer in model.model.layers
    ]
    expected = []
    for row, places in ((transcript, counted), (other, [0, 1, 2])):
        prompt = prompt_ids(Prompt(row.question, row.persona), TOKENIZER)
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([[*prompt, *row.token_ids]]))
        activations = torch.cat(seen, dim=-1)[0]
        expected.append(activations[[len(prompt) + at for at in places]])
    for hook in hooks:
        hook.remove()
    counts = measure(model, TOKENIZER, find_sites(model), [transcript, other]).whole
    assert counts.tokens == len(counted) + 3
    assert counts.answers == 1 + bool(counted)
    np.testing.assert_array_equal(counts.active, (torch.cat(expected) > 0).sum(0).numpy())


@pytest.mark.usefixtures("_marks")
def test_text_is_without_thinking_and_the_tokens_are_whole() -> None:
    model = tiny_chat_model(context=160)
    prompts = [Prompt("Tea?"), Prompt("A {long} walk"), Prompt("W{ho")]
    decoding = Decoding(max_new_tokens=100, repetition_penalty=1.5)
    thinking, answers = False, generate_answers(model, TOKENIZER, prompts, decoding)
    for prompt, answer in zip(prompts, answers, strict=True):
        thinking, text = "{" in prompt.question.partition("}")[0] and "}" not in prompt.question, ""
        for token in answer.token_ids:
            thinking = token == BEGIN or (thinking and token != END)
            text += "" if thinking or token == END else TOKENIZER.decode([token], skip_special_tokens=True)
        assert answer.text == text.strip()
    written = [token for answer in answers for token in answer.token_ids]
    assert BEGIN in written
    assert END in written
