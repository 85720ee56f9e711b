"""``npti-export generate``: one answer, or three side by side."""

from __future__ import annotations

import json

import click

from npti_export.cli import loading, options


@click.command("generate", epilog='Example: npti-export generate "How was your weekend?" --personality extraversion+')
@click.argument("prompt")
@click.option(
    "--personality", default="neutral", show_default=True, help="Such as openness+ or openness+0.5,neuroticism-."
)
@click.option("--compare", is_flag=True, help="Unsteered, high and low end side by side (one trait).")
@options.model
@options.adapter
@click.option("--max-new-tokens", type=click.IntRange(1), default=200, show_default=True)
@options.device
@options.dtype
@options.quiet
@options.as_json
def command(
    prompt: str,
    personality: str,
    compare: bool,
    model_name: str | None,
    adapter: str | None,
    max_new_tokens: int,
    device: str,
    dtype: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Answer one prompt with a personality.

    A personality is a trait with + or - and an optional strength: openness+, extraversion-0.5, or several with commas.
    """
    from npti_export.errors import NptiError
    from npti_export.traits import PersonalitySpec, Pole, Term

    spec = PersonalitySpec.parse(personality)
    if compare and len(spec.terms) != 1:
        raise NptiError(
            f"--compare sets the two ends of one trait side by side, and {personality!r} names {len(spec.terms)}; give "
            "one, such as --personality openness+."
        )
    specs = [spec]
    if compare:
        term = spec.terms[0]
        specs = [PersonalitySpec(), *(PersonalitySpec((Term(term.trait, pole, term.strength),)) for pole in Pole)]
    model, tokenizer = loading.load_model(model_name, device, dtype, quiet)

    from npti_export.identification.answers import Decoding, Prompt, generate_answers
    from npti_export.steering.personality import load_personality
    from npti_export.steering.thinking import Thinking

    decoding = Decoding(max_new_tokens, repetition_penalty=1.15, batch_size=1)
    answers: dict[str, str] = {}
    with load_personality(model, specs[-1], adapter, thinking=Thinking.of(tokenizer)) as loaded:
        for one in specs:
            loaded.set(one)
            answers[str(one)] = generate_answers(model, tokenizer, [Prompt(prompt)], decoding)[0].text
    if as_json:
        click.echo(json.dumps({"prompt": prompt, "answers": answers}, indent=2, ensure_ascii=False))
    elif compare:
        side_by_side(answers)
    else:
        click.echo(answers[str(spec)])


def side_by_side(answers: dict[str, str]) -> None:
    """Prints answers in columns, one a personality."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*("unsteered" if name == "neutral" else name for name in answers), show_lines=False)
    table.add_row(*(Text(answer) for answer in answers.values()))
    loading.print_table(table)
