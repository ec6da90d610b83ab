"""Competing binary phases: what keeps the embedded hull honest in chemical systems that the data set does not visit.

A hull made of the data set alone is full of holes: where no compound of two elements is known, any crystal of them
that holds together counts as stable, and a generator that is rewarded for stability goes there. So the commonest simple
binary structure types are tried for *every* pair of elements, and those that end on the hull become reference rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.data.substitution import AVOIDED, Prototype
from crystalforge.potentials.base import Potential
from crystalforge.stages.prototype_volume import at_best_volume, at_predicted_volume

# Rock salt, CsCl, zinc blende, CuAu, NiAs; fluorite, CdI2, AlB2, MoSi2; Cu3Au, BiF3 (D0_3).
COMMON_BINARIES = (
    "AB_cF8_225_a_b", "AB_cP2_221_b_a", "AB_cF8_216_c_a", "AB_tP2_123_a_d", "AB_hP4_194_c_a",
    "AB2_cF12_225_a_c", "AB2_hP3_164_a_d", "AB2_hP3_191_a_d", "AB2_tI6_139_a_e",
    "AB3_cP4_221_a_c", "AB3_cF16_225_a_bc",
)  # fmt: skip
# Whose two sites are equivalent: A-B and B-A are one crystal.
SELF_DUAL = frozenset(("AB_cF8_225_a_b", "AB_cP2_221_b_a", "AB_cF8_216_c_a", "AB_tP2_123_a_d"))
WORTH_REFINING = 0.25  # eV/atom of formation at the predicted volume; scaling rarely gains more


def competing_phases(
    prototype: Prototype, references: Mapping[int, float], potential: Potential
) -> list[tuple[str, Crystal, float]]:
    """(id, crystal, eV/atom) of one structure type with every pair of elements, where formation is exothermic.

    references: eV/atom of the elements by atomic number.
    """
    from pymatgen.core import Element

    symbols = [Element.from_Z(z).symbol for z in sorted(references) if z not in AVOIDED]
    pairs = [pair for pair in permutations(symbols, 2) if prototype.label not in SELF_DUAL or pair[0] < pair[1]]
    trial = [at_predicted_volume(prototype, pair) for pair in pairs]

    def formation(crystals: list[Crystal], energy: np.ndarray) -> np.ndarray:
        corners = [np.mean([references[z] for z in crystal.numbers.tolist()]) for crystal in crystals]
        return np.where(np.isfinite(energy), energy, np.inf) - np.array(corners)

    first = formation(trial, potential.predict(trial).energy / len(prototype.structure))
    chosen = np.flatnonzero(first < WORTH_REFINING)
    crystals, energy = at_best_volume([trial[index] for index in chosen], potential)
    exothermic = formation(crystals, energy) < 0
    return [
        (f"competing-{prototype.name(pairs[index])}", crystal, value)
        for index, crystal, value, keep in zip(chosen, crystals, energy.tolist(), exothermic, strict=True)
        if keep
    ]
