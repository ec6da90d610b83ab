"""Values that a reward must reproduce before it may serve.

A handful of well-known crystals is judged at start-up, by each model and by the reward as a whole. `golden.json` beside
this file pins what known models answer, by the digest of their weights; a configuration may pin the reward's own
values. A wrong weight file, a changed library or a broken build shows here, not in a week of wasted reinforcement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential, PropertyModel
from crystalforge.rewards.protocol import Reward, Status

MODEL_TOLERANCE = 5e-4
"""eV (per atom) by which a model in single precision may differ between machines; a hundred times what is seen, ten
times less than any real change of weights."""


def golden_crystals() -> dict[str, Crystal]:
    """Rock salt, rutile's simplest cousins and a semiconductor: cubic cells with textbook lattice constants
    (Å).
    """
    face_centred = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    two = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return {
        "NaCl": Crystal.of(5.69 * face_centred, [11, 17], two),
        "MgO": Crystal.of(4.26 * face_centred, [12, 8], two),
        "Si": Crystal.of(5.469 * face_centred, [14, 14], [[0, 0, 0], [0.25, 0.25, 0.25]]),
        "SrTiO3": Crystal.of(
            3.945 * np.eye(3),
            [38, 22, 8, 8, 8],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
    }


def golden_values(reward: Reward) -> dict[str, float]:
    """The reward's values of the golden crystals, by formula; those that it does not judge are left out."""
    crystals = golden_crystals()
    scores = reward.score(list(crystals.values()))
    return {
        formula: float(value)
        for formula, value, status in zip(crystals, scores.values, scores.status, strict=True)
        if status == Status.OK
    }


def verify_potential(potential: Potential) -> None:
    """Hold a potential's energies (eV/atom) against the pinned ones, where its weights are known."""
    if (pinned := _pinned(potential.digest)) is None:
        return
    crystals = golden_crystals()
    answer = potential.predict(list(crystals.values()))
    sizes = [len(crystal) for crystal in crystals.values()]
    verify(potential.name, _known(crystals, answer.energy / sizes), pinned, MODEL_TOLERANCE)


def verify_property(model: PropertyModel) -> None:
    """Hold a property model's first column against the pinned values, where its weights are known."""
    if (pinned := _pinned(model.digest)) is None:
        return
    crystals = golden_crystals()
    values = model.predict_values(list(crystals.values())).values[:, 0]
    verify(model.name, _known(crystals, values), pinned, MODEL_TOLERANCE)


def _known(formulas: Iterable[str], values: np.ndarray) -> dict[str, float]:
    return {formula: float(value) for formula, value in zip(formulas, values, strict=True) if np.isfinite(value)}


def _pinned(digest: str) -> dict[str, float] | None:
    pins = json.loads((resources.files("crystalforge.rewards") / "golden.json").read_text())
    return pins[digest]["values"] if digest in pins else None


def verify(name: str, seen: Mapping[str, float], pinned: Mapping[str, float], tolerance: float) -> None:
    """Raise InputError naming every golden value that is missing or off by more than `tolerance`."""
    wrong = [
        f"{formula}: {seen[formula]:.6f} instead of {value:.6f}" if formula in seen else f"{formula}: not judged"
        for formula, value in pinned.items()
        if formula not in seen or not abs(seen[formula] - value) <= tolerance
    ]
    if wrong:
        raise InputError(
            f"{name!r} does not reproduce its golden values ({'; '.join(wrong)}; tolerance {tolerance:g})",
            source="golden values",
            remedy="check the weights, the hull and the versions of the libraries; pin new values only when a change "
            "was meant",
        )
