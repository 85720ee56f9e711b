"""The judges of a run: the options that name them, given to a command as one argument that makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from npti_export.cli import loading
from npti_export.cli.one_argument import as_one
from npti_export.errors import NptiError

if TYPE_CHECKING:
    from npti_export.evaluation.judges.cost import Budget
    from npti_export.evaluation.judges.local_judge import LocalJudge
    from npti_export.evaluation.judges.openai_judge import OpenAIJudge
    from npti_export.evaluation.judges.self_judge import SelfJudge
    from npti_export.identification.elicit import Transcript
    from npti_export.traits import Trait

_judge = click.option(
    "--judge",
    "judge_names",
    multiple=True,
    default=("local",),
    show_default=True,
    help="local; self (the unsteered model, no key); openai, or openai:MODEL for a certain one (key from "
    "OPENAI_API_KEY). Several times for several: the first one's scores are shown, with its agreement with the others.",
)
_judge_url = click.option("--judge-url", help="Base URL of any OpenAI-compatible server. [env: OPENAI_BASE_URL]")
_max_cost = click.option(
    "--max-cost",
    type=click.FloatRange(0),
    help="Ask no judge that would cost more, in US dollars; 10 where a price is known, unless given.",
)
_transcripts = click.option(
    "--transcripts",
    type=click.Path(path_type=Path),
    help="Transcripts that the local judge learns from; those beside the adapter unless given.",
)


@dataclass(frozen=True)
class Judging:
    """Who judges, from what, and for how much.

    Args:
        judge_names: As given with ``--judge``; the first is the main one.
        judge_url: Another server for ``openai:MODEL``.
        max_cost: US dollars; None is the default.
        transcripts: A file of transcripts in place of those beside the adapter.

    Raises:
        NptiError: If there is no such judge, one is there twice, the address would be for none of them, or there is no
            such file.
    """

    judge_names: tuple[str, ...]
    judge_url: str | None = None
    max_cost: float | None = None
    transcripts: Path | None = None

    def __post_init__(self) -> None:
        check_judge_names(self.judge_names, self.judge_url)
        if self.transcripts is not None and not self.transcripts.is_file():
            raise NptiError(f"There is no file {self.transcripts}; --transcripts names what identification wrote.")

    def budget(self, quiet: bool) -> Budget:
        """What all judges of a run take their cost from."""
        from npti_export.evaluation.judges.cost import Budget

        return Budget(self.max_cost, partial(loading.notice, quiet=quiet))

    def transcripts_of(self, trait: str, adapter: Path) -> list[Transcript]:
        """The transcripts of a trait: those of the file that was named, or beside the adapter; none where none are."""
        from npti_export.identification.elicit import read_transcripts

        path = self._transcripts_file(trait, adapter)
        return [transcript for transcript in read_transcripts(path) if transcript.trait == trait]

    def judges_of(
        self,
        traits: Sequence[Trait],
        *,
        adapter: Path,
        model: Any,
        tokenizer: Any,
        output: Path | None = None,
        batch_size: int = 8,
        seed: int = 0,
        budget: Budget | None = None,
    ) -> dict[str, list[LocalJudge | OpenAIJudge | SelfJudge]]:
        """The judges of each trait, one a criterion: its trait judge and, but for the local one, its fluency.

        Args:
            traits: What the answers are about.
            adapter: Its folder; the local judge learns from the transcripts beside it.
            model: The base model, which is the judge ``self``.
            tokenizer: Its tokenizer.
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
        judges: dict[str, list[LocalJudge | OpenAIJudge | SelfJudge]] = {trait.name: [] for trait in traits}
        for trait in traits:
            of_trait = judges[trait.name]
            for name in map(_full_name, self.judge_names):
                if name == "local":
                    of_trait.append(self._local_judge(trait.name, adapter))
                elif name == "self":
                    of_trait += [
                        SelfJudge(trait, model, tokenizer, criterion=criterion, batch_size=batch_size)
                        for criterion in criteria
                    ]
                else:
                    asked, url = name.removeprefix("openai:"), self.judge_url
                    of_trait += [
                        OpenAIJudge(trait, asked, url, record, criterion=criterion, seed=seed, budget=budget)
                        for criterion in criteria
                    ]
        return judges

    def _local_judge(self, trait: str, adapter: Path) -> LocalJudge:
        from npti_export.evaluation.judges.local_judge import LocalJudge

        found = self.transcripts_of(trait, adapter)
        if not found:
            raise NptiError(
                "The local judge learns from transcripts of identification, and "
                f"{self._transcripts_file(trait, adapter)} holds none for {trait}; name a file with --transcripts, or "
                "use --judge self or --judge openai:MODEL."
            )
        return LocalJudge.train(found)

    def _transcripts_file(self, trait: str, adapter: Path) -> Path:
        from npti_export.pipeline import transcripts_file

        return self.transcripts or transcripts_file(adapter, trait)


judging = as_one("judging", Judging, _judge, _judge_url, _max_cost, _transcripts)
"""Judges as options; the command gets them as one :class:`Judging`."""


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


def _full_name(name: str) -> str:
    from npti_export.evaluation.judges.chat_requests import GPT_4O

    return f"openai:{GPT_4O}" if name == "openai" else name
