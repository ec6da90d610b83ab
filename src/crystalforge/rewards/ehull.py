"""r = -E_hull: how far a crystal's energy lies above the convex hull of known phases.

Deviations from the published reward (Cao & Wang, arXiv:2504.02367), each for a reason: a spurious energy far
below the hull gets the floor instead of the greatest reward; a failure gets the floor with a status instead
of +10 eV; the hull is built once per chemical system; corrections need no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential
from crystalforge.rewards.base import Judgement, failed_status
from crystalforge.rewards.config import EHullReward
from crystalforge.rewards.protocol import Status
from crystalforge.thermo import HullStore


class EHullJudge:
    """Energy from a potential, distance from a hull."""

    component_names = ("e_above_hull", "energy_per_atom", "hull_energy")

    def __init__(self, config: EHullReward, potential: Potential, hull: HullStore) -> None:
        self._config, self.potential, self._hull = config, potential, hull
        self.elements: frozenset[int] | None = potential.elements
        self.digests = {"potential": potential.digest, "hull": hull.digest}
        self._correct = _needs_correction(config, potential, hull)

    def counters(self) -> dict[str, int]:
        """How often a chemical system's hull was at hand, and how often it had to be built."""
        return {"hull_cache_hits": self._hull.hits, "hull_cache_misses": self._hull.misses}

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        config = self._config
        if config.relax is not None:
            from crystalforge.potentials.relax import relax

            relaxed = relax(
                self.potential,
                crystals,
                fmax=config.relax.fmax,
                steps=config.relax.steps,
                fix_symmetry=config.relax.fix_symmetry,
            )
            crystals, total, problems = relaxed.crystals, relaxed.energy, relaxed.problems
        else:
            prediction = self.potential.predict(crystals)
            total, problems = prediction.energy, prediction.problems
        status = failed_status(problems, total)
        energy = total / np.array([len(crystal) for crystal in crystals])
        if self._correct:
            from crystalforge.thermo.corrections import mp2020_corrections

            energy = energy + mp2020_corrections(crystals)
            status[(status == Status.OK) & ~np.isfinite(energy)] = Status.FAILED
        low, high = config.energy_bounds
        if self.potential.scale == "r2scan":
            # These totals hold the inner shells: -60 eV/atom is usual, and how low is too low only the hull can tell.
            low = -np.inf
        status[(status == Status.OK) & ~((energy >= low) & (energy <= high))] = Status.OUT_OF_BOUNDS
        answer = self._hull.e_above_hull_many([crystal.numbers for crystal in crystals], energy)
        sparse = answer.missing | (answer.n_compounds < config.min_compounds)
        status[(status == Status.OK) & sparse] = Status.SPARSE_HULL
        escaped = answer.e_above_hull < -config.max_below_hull
        status[(status == Status.OK) & escaped] = Status.OUT_OF_BOUNDS
        return Judgement(
            -answer.e_above_hull,
            status,
            {
                "e_above_hull": answer.e_above_hull,
                "energy_per_atom": energy,
                "hull_energy": answer.hull_energy,
            },
        )


def _needs_correction(config: EHullReward, potential: Potential, hull: HullStore) -> bool:
    """Whether MP2020 corrections bridge the two scales; raises InputError when nothing does."""
    if config.corrections == "mp2020":
        return True
    if potential.scale == hull.scale:
        return False
    if config.corrections == "auto" and (potential.scale, hull.scale) == ("pbe", "mp2020"):
        return True
    raise InputError(
        f"{potential.name} predicts energies on the scale {potential.scale!r}, the hull holds {hull.scale!r}",
        source="reward ehull",
        remedy="choose a hull on the same scale, or corrections: mp2020 for raw PBE energies against a corrected hull",
    )
