"""The judges of a run: the options that name them, and from the options to the judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.evaluation.judges.cost import Budget
    from npti_export.evaluation.judges.local_judge import LocalJudge
    from npti_export.evaluation.judges.openai_judge import OpenAIJudge
    from npti_export.evaluation.judges.self_judge import SelfJudge
    from npti_export.traits import Trait

judge = click.option(
    "--judge",
    "judge_names",
    multiple=True,
    default=("local",),
    show_default=True,
    help="local; self (the unsteered model, no key); openai, or openai:MODEL for a certain one (key from "
    "OPENAI_API_KEY). Several times for several: the first one's scores are shown, with its agreement with the others.",
)
judge_url = click.option("--judge-url", help="Base URL of any OpenAI-compatible server. [env: OPENAI_BASE_URL]")
max_cost = click.option(
    "--max-cost",
    type=click.FloatRange(0),
    help="Ask no judge that would cost more, in US dollars; 10 where a price is known, unless given.",
)


def check_judge_names(names: Sequence[str], url: str | None = None) -> None:
    """Refuses judges that are not there, before any work is done.

    Args:
        names: As given with ``--judge``.
        url: As given with ``--judge-url``.

    Raises:
        NptiError: If there is no such judge, one is there twice, or the address would be for none of them.
    """
    for name in names:
        if name not in ("local", "self", "openai") and (not name.startswith("openai:") or name == "openai:"):
            raise NptiError(f"There is no judge {name!r}; local, self or openai:MODEL is expected.")
    name, times = Counter(map(_full_name, names)).most_common(1)[0]
    if times > 1:
        raise NptiError(f"The judge {name} is named {times} times; name each once.")
    if url and all(name in ("local", "self") for name in names):
        raise NptiError(f"--judge-url is for --judge openai:MODEL, and {' and '.join(names)} asks no server.")


def make_judges(
    names: Sequence[str],
    trait: Trait,
    *,
    adapter: Path,
    model: Any,
    tokenizer: Any,
    url: str | None = None,
    transcripts: Path | None = None,
    output: Path | None = None,
    batch_size: int = 8,
    seed: int = 0,
    budget: Budget | None = None,
) -> list[LocalJudge | OpenAIJudge | SelfJudge]:
    """The judges of those names for a trait, one a criterion: its trait judge and, but for the local one, its fluency.

    Args:
        names: Of judges, as ``check_judge_names`` takes them; the first is the main one.
        trait: The trait that the answers are about.
        adapter: Its folder; the local judge learns from the transcripts beside it.
        model: The base model, which is the judge ``self``.
        tokenizer: Its tokenizer.
        url: Another server for ``openai:MODEL``.
        transcripts: A file of transcripts in place of those beside the adapter.
        output: Where judgements are kept as they come; without it in the user's cache.
        batch_size: Rows that the judge ``self`` reads at once.
        seed: Decides the order in which answers are judged.
        budget: What judges that cost something take it from.

    Raises:
        NptiError: If the local judge has nothing to learn from, or there is no key for OpenAI.
    """
    from npti_export.adapter.find import cache_folder
    from npti_export.evaluation.judges.judgement import Criterion
    from npti_export.evaluation.judges.openai_judge import OpenAIJudge
    from npti_export.evaluation.judges.self_judge import SelfJudge

    criteria: tuple[Criterion, ...] = ("trait", "fluency")
    record = (output or cache_folder()) / "judgements.jsonl"
    judges: list[LocalJudge | OpenAIJudge | SelfJudge] = []
    for name in map(_full_name, names):
        if name == "local":
            judges.append(_local_judge(trait.name, adapter, transcripts))
            continue
        for criterion in criteria:
            if name == "self":
                judges.append(SelfJudge(trait, model, tokenizer, criterion=criterion, batch_size=batch_size))
            else:
                asked = name.removeprefix("openai:")
                judges.append(OpenAIJudge(trait, asked, url, record, criterion=criterion, seed=seed, budget=budget))
    return judges


def _full_name(name: str) -> str:
    from npti_export.evaluation.judges.chat_requests import GPT_4O

    return f"openai:{GPT_4O}" if name == "openai" else name


def _local_judge(trait: str, adapter: Path, transcripts: Path | None) -> LocalJudge:
    from npti_export.evaluation.judges.local_judge import LocalJudge
    from npti_export.identification.elicit import read_transcripts
    from npti_export.pipeline import transcripts_file

    path = transcripts or transcripts_file(adapter, trait)
    found = [transcript for transcript in read_transcripts(path) if transcript.trait == trait]
    if not found:
        raise NptiError(
            f"The local judge learns from transcripts of identification, and {path} holds none for {trait}; name a "
            "file with --transcripts, or use --judge self or --judge openai:MODEL."
        )
    return LocalJudge.train(found)
