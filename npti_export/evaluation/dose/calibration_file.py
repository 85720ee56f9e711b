"""What was tried to find a trait's dose, as JSON beside the adapter; and whether the trait stands as that left it."""

from __future__ import annotations

import json
from typing import Any

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.evaluation.dose.calibration import Calibration, TriedWay, way_name
from npti_export.evaluation.intervals import Estimate
from npti_export.identification.files import TraitFiles, file_sha256, write_beside
from npti_export.traits import Pole


def write_done(files: TraitFiles, made_with: str, calibration: Calibration) -> dict[Pole, str]:
    """Writes what was tried and why each pole is steered as it is, once the adapter is written.

    Args:
        files: Where the trait's files lie.
        made_with: Hash over all that decides the result.
        calibration: The result.

    Returns:
        The reasons.

    Raises:
        NptiError: If the file cannot be written.
    """
    record = {
        "made_with": made_with,
        "adapter_sha256": _adapter_sha256(files),
        "poles": {
            pole: {"reason": calibration.reasons[pole], "tried": [_way(way) for way in calibration.tried[pole]]}
            for pole in Pole
        },
    }
    write_beside(files.done, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return calibration.reasons


def read_done(files: TraitFiles, adapter: PersonalityAdapter, made_with: str) -> dict[Pole, str] | None:
    """Why each pole is steered as it is; None where the trait does not stand in the adapter as this run would leave it.

    Args:
        files: Where the trait's files lie.
        adapter: As it stands in the folder.
        made_with: Hash over all that decides the result.
    """
    record = adapter.traits.get(files.trait)
    if record is None:
        return None
    try:
        done = json.loads(files.done.read_bytes())
        reasons = {pole: str(done["poles"][pole]["reason"]) for pole in Pole}
        same = (done["made_with"], done["adapter_sha256"]) == (made_with, _adapter_sha256(files))
        # The marks stand in config.json, which that hash does not cover.
        same &= all(record.poles[pole].calibrated == bool(done["poles"][pole]["tried"]) for pole in Pole)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return reasons if same else None


def _adapter_sha256(files: TraitFiles) -> str | None:
    return file_sha256(files.folder / f"{files.trait}.safetensors")


def _way(way: TriedWay) -> dict[str, Any]:
    return {
        "way": way_name(way.record),
        "doses": [
            {"gamma": dose.gamma, "effect": _numbers(dose.effect), "fluency": _numbers(dose.fluency)}
            for dose in way.doses
        ],
    }


def _numbers(estimate: Estimate) -> list[float]:
    """Mean, low and high."""
    return [estimate.mean, estimate.low, estimate.high]
