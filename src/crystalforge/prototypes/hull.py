"""Competing binary phases: what keeps the embedded hull honest in chemical systems that the data set does not visit.

A hull made of the data set alone is full of holes: where no compound of two elements is known, any crystal of them
that holds together counts as stable, and a generator that is rewarded for stability goes there. So the commonest simple
binary structure types are tried for *every* pair of elements, and those that end on the hull become reference rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations, product

import numpy as np
from jaxtyping import Bool

from crystalforge.crystal import Crystal
from crystalforge.data.substitution import AVOIDED, Prototype
from crystalforge.potentials.base import Potential
from crystalforge.prototypes.volume import at_best_volume

# Rock salt, CsCl, fluorite (and its inverse), CdI2, Cu3Au: ionic and metallic, 1:1, 1:2 and 1:3.
COMMON_BINARIES = ("AB_cF8_225_a_b", "AB_cP2_221_b_a", "AB2_cF12_225_a_c", "AB2_hP3_164_a_d", "AB3_cP4_221_a_c")
SELF_DUAL = frozenset(("AB_cF8_225_a_b", "AB_cP2_221_b_a"))  # both sites are equivalent: A-B and B-A are one crystal
WORTH_REFINING = 0.2  # eV/atom of formation at the first guess of the volume; scaling rarely gains more


def competing_phases(
    prototype: Prototype, references: Mapping[int, float], potential: Potential
) -> list[tuple[str, Crystal, float]]:
    """(id, crystal, eV/atom) of one structure type with every pair of elements, where formation is exothermic.

    references: eV/atom of the elements by atomic number.
    """
    radius = {z: _slater_radius(z) for z in sorted(references) if z not in AVOIDED and _slater_radius(z) > 0}
    pairs = [pair for pair in permutations(radius, 2) if prototype.label not in SELF_DUAL or pair[0] < pair[1]]
    unit = Crystal.from_structure(prototype.structure)
    first_site = unit.numbers == unit.numbers.max()  # which of the two sites is the first of a pair: any rule will do
    contacts = _contacts(unit, first_site)
    trial = []
    for first, second in pairs:
        sums = (2 * radius[first], radius[first] + radius[second], 2 * radius[second])
        scale = max(wanted / have for wanted, have in zip(sums, contacts, strict=True))
        trial.append(Crystal.of(unit.lattice * scale, np.where(first_site, first, second), unit.frac))

    def formation(crystals: list[Crystal], energy: np.ndarray) -> np.ndarray:
        corners = [np.mean([references[z] for z in crystal.numbers.tolist()]) for crystal in crystals]
        return np.where(np.isfinite(energy), energy, np.inf) - np.array(corners)

    guess = formation(trial, potential.predict(trial).energy / len(unit))
    chosen = np.flatnonzero(guess < WORTH_REFINING)
    crystals, energy = at_best_volume([trial[index] for index in chosen], potential)
    exothermic = formation(crystals, energy) < 0
    return [
        (_name(prototype, crystal), crystal, value)
        for crystal, value, keep in zip(crystals, energy.tolist(), exothermic, strict=True)
        if keep
    ]


def _name(prototype: Prototype, crystal: Crystal) -> str:
    """Element symbols in the order in which the structure type's name gives its elements."""
    from pymatgen.core import Element

    old = np.array([Element(site.specie.symbol).Z for site in prototype.structure])
    new = [Element.from_Z(int(crystal.numbers[old == Element(symbol).Z][0])).symbol for symbol in prototype.elements]
    return f"competing-{prototype.name(tuple(new))}"


def _slater_radius(z: int) -> float:
    """Å (Slater, J. Chem. Phys. 41, 3199, 1964): sums of two are bond lengths, ionic or metallic, within 0.12 Å."""
    from pymatgen.core import Element

    radius = Element.from_Z(z).atomic_radius
    return 0.0 if radius is None else float(radius)


def _contacts(crystal: Crystal, first_site: Bool[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Shortest distances first-first, first-second, second-second in Å."""
    images = np.array(list(product((-2, -1, 0, 1, 2), repeat=3)))
    difference = crystal.frac[:, None, None] - crystal.frac[None, :, None] + images
    distance = np.linalg.norm(difference @ crystal.lattice, axis=-1)
    distance[distance < 1e-6] = np.inf  # an atom and itself
    shortest = distance.min(axis=2)
    masks = (first_site[:, None] & first_site, first_site[:, None] & ~first_site, ~first_site[:, None] & ~first_site)
    one, two, three = (float(shortest[mask].min()) for mask in masks)
    return one, two, three
