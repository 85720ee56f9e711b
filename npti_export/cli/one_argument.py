"""Options that belong together, given to a command as one argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

Command = Callable[..., None]
Option = Callable[[Command], Command]


def as_one(name: str, make: Callable[..., Any], *options: Option) -> Option:
    """A decorator that adds options to a command, which gets what is made of them.

    Args:
        name: Of the command's argument.
        make: Makes it; its parameters are named as the options are.
        options: In the order in which ``--help`` lists them.
    """
    wanted = list(inspect.signature(make).parameters)

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_one(**given: Any) -> None:
            made = make(**{parameter: given.pop(parameter) for parameter in wanted})
            command(**{name: made}, **given)

        decorated: Command = with_one
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
