"""Personalities in a model's name: ``BASE:openness+``, for clients that can set nothing else."""

from __future__ import annotations

from collections.abc import Iterable

SEPARATOR = ":"


def split_model_name(name: str, served: Iterable[str]) -> tuple[str, str | None]:
    """Takes the personality off a model's name.

    Args:
        name: What the client calls the model.
        served: Names of the models that there are; they may hold the separator themselves.

    Returns:
        The model's name and the personality, None if the name has none.

    >>> split_model_name("org/model:v2:openness+", ["org/model:v2"])
    ('org/model:v2', 'openness+')
    >>> split_model_name("another", ["org/model:v2"])
    ('another', None)
    """
    names = sorted(served, key=len, reverse=True)
    if name in names:
        return name, None
    for base in names:
        if name.startswith(base + SEPARATOR):
            return base, name[len(base) + 1 :]
    return name, None
