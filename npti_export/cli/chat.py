"""``npti-export chat``: a conversation whose personality can be switched while it runs."""

from __future__ import annotations

import sys
from typing import Any

import click

from npti_export.cli import loading, options
from npti_export.errors import NptiError

HELP = "/personality SPEC switches, /reset starts anew, /quit ends."


@click.command("chat", epilog="Example: npti-export chat --personality agreeableness-")
@click.option("--personality", default="neutral", show_default=True, help="Such as openness+ or extraversion-0.5.")
@options.model
@options.adapter
@click.option("--max-new-tokens", type=click.IntRange(1), default=400, show_default=True)
@options.device
@options.dtype
@options.quiet
def command(
    personality: str,
    model_name: str | None,
    adapter: str | None,
    max_new_tokens: int,
    device: str,
    dtype: str,
    quiet: bool,
) -> None:
    """Talk to a model with a personality; answers stream, and the conversation is kept.

    \b
    /personality openness-   switch (neutral is off)
    /reset                   forget the conversation
    /quit                    end
    Ctrl-C                   stop an answer; at the prompt, end
    """
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.steering.personality import load_personality
    from npti_export.steering.thinking import Thinking

    with load_personality(model, personality, adapter, thinking=Thinking.of(tokenizer)) as loaded:
        loading.notice(f"Personality {loaded.spec}. {HELP}", quiet)
        converse(model, tokenizer, loaded, max_new_tokens, quiet)


def converse(model: Any, tokenizer: Any, loaded: Any, max_new_tokens: int, quiet: bool) -> None:
    """Reads lines from standard input until /quit or its end, and answers them."""
    history: list[dict[str, str]] = []
    while True:
        if not quiet:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        try:
            history = _turn(model, tokenizer, loaded, history, line.strip(), max_new_tokens, quiet)
        except NptiError as error:
            click.echo(f"Error: {error}", err=True)
        except KeyboardInterrupt:
            loading.notice("\nStopped; the conversation stands as it did before this line.", quiet)


def _turn(
    model: Any,
    tokenizer: Any,
    loaded: Any,
    history: list[dict[str, str]],
    line: str,
    max_new_tokens: int,
    quiet: bool,
) -> list[dict[str, str]]:
    """Does what one line asks for and returns the conversation after it."""
    word, _, rest = line.partition(" ")
    if word == "/reset":
        loading.notice("The conversation starts anew.", quiet)
        return []
    if word == "/personality":
        loaded.set(rest.strip() or "neutral")
        loading.notice(f"Personality {loaded.spec}.", quiet)
    elif word.startswith("/"):
        loading.notice(f"There is no command {word}. {HELP}", quiet)
    elif line:
        asked = fitting([*history, {"role": "user", "content": line}], tokenizer, model)
        answer = _answer(model, tokenizer, asked, max_new_tokens)
        return [*asked, {"role": "assistant", "content": answer}]
    return history


def fitting(history: list[dict[str, str]], tokenizer: Any, model: Any) -> list[dict[str, str]]:
    """The latest turns that leave a third of the context to the answer, the last question in any case."""
    from npti_export.identification.answers import context_length

    room = context_length(model) * 2 // 3
    while len(history) > 1 and len(_ids(history, tokenizer)) > room:
        history = history[2:]
    return history


def _answer(model: Any, tokenizer: Any, history: list[dict[str, str]], max_new_tokens: int) -> str:
    """Streams one answer to standard output and returns it."""
    import torch
    from transformers import TextStreamer

    from npti_export.identification.answers import context_length, end_tokens

    ids = torch.tensor([_ids(history, tokenizer)], device=model.device)
    room = context_length(model) - ids.shape[1]
    if room < 1:
        raise NptiError("The message is longer than the model's context; say it in fewer words.")
    ends = sorted(end_tokens(model, tokenizer))
    streamer: Any = TextStreamer
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.15,
        max_new_tokens=min(max_new_tokens, room),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
        eos_token_id=ends or None,
        streamer=streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _ids(history: list[dict[str, str]], tokenizer: Any) -> list[int]:
    if not tokenizer.chat_template:
        raise NptiError(f"The tokenizer of {tokenizer.name_or_path} has no chat template, so it is no chat model.")
    text = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
