"""What an adapter records of the model it was made for, and whether another model fits it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from npti_export.errors import NptiError

UNKNOWN = "unknown"
"""Type or activation of a base model whose config could not be had; it fits any."""


@dataclass(frozen=True)
class LayerNeurons:
    """How many neurons one layer has.

    Args:
        dense: Gate units of a dense feed-forward block.
        experts: Number of routed experts.
        per_expert: Gate units of each.
        shared: Gate units of the shared expert.
    """

    dense: int = 0
    experts: int = 0
    per_expert: int = 0
    shared: int = 0

    @property
    def total(self) -> int:
        """All neurons of the layer."""
        return self.dense + self.experts * self.per_expert + self.shared


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter was made for.

    Args:
        id: Hub id, or the last component of the folder that it was loaded from.
        revision: Commit on the Hub, where known.
        model_type: As in the model's config, for example ``llama``; ``unknown`` where that could not be had.
        num_layers: Number of decoder layers.
        neurons_per_layer: How many neurons each has.
        activation: Name of the non-linearity; ``unknown`` likewise.
        gated: Whether the layers are gated.
        fingerprint: SHA-256 of the first gate weights, None where it could not be taken.
    """

    id: str
    revision: str | None
    model_type: str
    num_layers: int
    neurons_per_layer: tuple[LayerNeurons, ...]
    activation: str
    gated: bool
    fingerprint: str | None

    @property
    def num_neurons(self) -> int:
        """All neurons of all layers (the N of the selection rule)."""
        return sum(layer.total for layer in self.neurons_per_layer)

    @property
    def num_experts(self) -> int:
        """All routed experts of all layers."""
        return sum(layer.experts for layer in self.neurons_per_layer)

    def check_fit(self, model: BaseModel) -> str | None:
        """Whether an adapter made for this model can steer another one.

        Args:
            model: The model at hand.

        Returns:
            A warning if the shapes agree but the weights do not (another fine-tune), else None.

        Raises:
            NptiError: If the shapes differ.
        """
        for what in ("model_type", "num_layers", "neurons_per_layer", "activation", "gated"):
            mine, theirs = getattr(self, what), getattr(model, what)
            if mine != theirs and UNKNOWN not in (mine, theirs):
                if what == "neurons_per_layer":
                    mine, theirs = self.num_neurons, model.num_neurons
                raise NptiError(
                    f"The adapter was made for {self.id} ({what} {mine}) and does not fit {model.id} ({theirs}); "
                    "identify neurons for this model, or load the adapter's own base model."
                )
        if self.fingerprint and model.fingerprint and self.fingerprint != model.fingerprint:
            return (
                f"the adapter was made for {self.id} and this model, {model.id}, has the same shape but other weights; "
                "its neurons may not mean the same here"
            )
        return None

    def joined(self, newer: BaseModel) -> BaseModel | None:
        """One record of the model that two adapters were made for, so that they can become one.

        What one of them does not know, as an import does not know the fingerprint, is taken from the other; where both
        know a revision the newer holds.

        Args:
            newer: The other record.

        Returns:
            The record, or None if they are of two models.
        """
        if self.id != newer.id:
            return None
        known = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(newer, field.name)
            known[field.name] = mine if theirs in (None, UNKNOWN) else theirs
            if mine not in (theirs, None, UNKNOWN) and theirs not in (None, UNKNOWN) and field.name != "revision":
                return None
        return BaseModel(**known)
