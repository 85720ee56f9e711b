"""Names for personalities that are added while a server runs, as many as there are slots for them."""

from __future__ import annotations

from npti_export.errors import NptiError
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.presets import check_name

DEFAULT_SLOTS = 16


class AddedPersonalities:
    """The presets of a running server, which may grow; whoever asks for one by its name finds it at once.

    Args:
        served: The server's personalities, whose presets are changed.
        slots: How many names may be added to those that it was started with.

    >>> from npti_export.adapter.adapter import PersonalityAdapter
    >>> from npti_export.adapter.find import bundled_folder
    >>> served = ServedPersonalities(PersonalityAdapter.from_pretrained(bundled_folder()))
    >>> added = AddedPersonalities(served, slots=2)
    >>> added.add("warm-agent", "agreeableness+,extraversion+0.5")
    >>> str(served.check("warm-agent")), added.free
    ('extraversion+0.5,agreeableness+', 1)
    """

    def __init__(self, served: ServedPersonalities, slots: int) -> None:
        self.served = served
        self.slots = slots
        self._added: set[str] = set()

    @property
    def free(self) -> int:
        """How many names may still be added."""
        return self.slots - len(self._added)

    def listing(self) -> dict[str, str]:
        """Every name and its personality, those that the server was started with first."""
        return {name: str(spec) for name, spec in self.served.presets.items()}

    def add(self, name: str, personality: str) -> None:
        """Gives a personality a name.

        Args:
            name: Lower-case words joined by hyphens, not in use.
            personality: A spec.

        Raises:
            NptiError: If the name is none or in use, the personality cannot be served, or no slot is free.
        """
        check_name(name, "The request")
        if name in self.served.presets:
            raise NptiError(f"The name {name!r} is in use, for {self.served.presets[name]}; remove it first.")
        spec = self.served.check(personality)
        if not self.free:
            raise NptiError(
                f"All {self.slots} slots for added personalities are taken, so {name!r} was not added; remove one, or "
                "start the server with a larger NPTI_SLOTS."
            )
        self.served.presets[name] = spec
        self._added.add(name)

    def remove(self, name: str) -> None:
        """Takes a name away that was added; requests that are under way keep their personality.

        Raises:
            NptiError: If it was not added.
        """
        if name not in self._added:
            there = ", ".join(sorted(self._added)) or "none"
            raise NptiError(f"No personality {name!r} was added while the server ran (added are: {there}).")
        self._added.remove(name)
        del self.served.presets[name]
