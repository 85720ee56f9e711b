"""The GPT-4o protocol for one adapter: every method side by side, judged blind from 1 to 5, as the paper judges.

    OPENAI_API_KEY=… python eval/personality.py --adapter user/repo --model org/name --output eval/results/name

This is `npti-export eval` with the paper's judge in place of the local one, and takes its options. Answers and
judgements are kept in the output folder as they come; the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys

from npti_export.cli import main

JUDGE = "openai:gpt-4o-2024-08-06"

if __name__ == "__main__":
    main(["eval", "--judge", JUDGE, *sys.argv[1:]])
