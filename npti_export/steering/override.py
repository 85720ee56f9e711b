"""A method put on a module itself, in the place of its type's, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Override:
    """A method of a module's own, for as long as it is not removed.

    Args:
        module: The module.
        name: The method's name.
        method: What is called from now on in its place, without the module as an argument.

    >>> module = nn.Identity()
    >>> override = Override(module, "forward", lambda x: x + 1)
    >>> module(1)
    2
    >>> override.remove()
    >>> module(1), "forward" in vars(module)
    (1, False)
    """

    def __init__(self, module: nn.Module, name: str, method: Callable[..., Any]) -> None:
        self._module, self._name, self._method = module, name, method
        self._own = vars(module).get(name)
        vars(module)[name] = method

    def remove(self) -> None:
        """Puts back what was there; what somebody has put over it since (accelerate's hooks) stays."""
        of_instance = vars(self._module)
        if of_instance.get(self._name) is not self._method:
            return
        del of_instance[self._name]
        if self._own is not None:
            of_instance[self._name] = self._own
