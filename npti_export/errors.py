"""The one exception that says what a user can mend."""

from __future__ import annotations


class NptiError(ValueError):
    """What was found, what was expected, where, and what to do, in one sentence; the command line prints it."""
