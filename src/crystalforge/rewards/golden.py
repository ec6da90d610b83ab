"""Values that a reward must reproduce before it may serve.

A handful of well-known crystals is judged at start-up. Pinned values come from the configuration, or from
`golden.json` beside this file for the rewards that ship with the package (by the reward's digest). A wrong
weight file, a changed library or a broken build shows here, not in a week of wasted reinforcement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.rewards.protocol import Reward, Status


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


def pinned_values(digest: str) -> dict[str, float] | None:
    """The values in the repository for a reward with this digest, None when it has none."""
    pins = json.loads((resources.files("crystalforge.rewards") / "golden.json").read_text())
    return pins.get(digest)


def verify(name: str, seen: Mapping[str, float], pinned: Mapping[str, float], tolerance: float) -> None:
    """Raise InputError naming every golden value that is missing or off by more than `tolerance`."""
    wrong = [
        f"{formula}: {seen[formula]:.6f} instead of {value:.6f}" if formula in seen else f"{formula}: not judged"
        for formula, value in pinned.items()
        if formula not in seen or not abs(seen[formula] - value) <= tolerance
    ]
    if wrong:
        raise InputError(
            f"reward {name!r} does not reproduce its golden values ({'; '.join(wrong)}; tolerance {tolerance:g})",
            source="golden values",
            remedy="check the weights, the hull and the versions of the libraries; pin new values only when a change "
            "was meant",
        )
