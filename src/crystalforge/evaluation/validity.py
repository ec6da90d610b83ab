"""Is it a crystal at all: the structure and composition checks of CDVAE (arXiv 2110.06197, section 5.2).

Deviation: CDVAE leaves crystals that cannot be built out of the average. Here they are failures and count.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np

from crystalforge.common.errors import missing_extra
from crystalforge.crystal import Crystal

MIN_DISTANCE = 0.5  # Å between two sites; CDVAE's definition, which looks at pairs and not at a site's own images
MIN_VOLUME = 0.1  # Å^3 of the cell; CDVAE's definition


def min_distance(crystal: Crystal) -> float:
    """Shortest distance in Å between two different sites, periodic images included; infinity for one site."""
    from pymatgen.core import Lattice

    if len(crystal) < 2:
        return math.inf
    distances = Lattice(crystal.lattice).get_all_distances(crystal.frac, crystal.frac)
    np.fill_diagonal(distances, math.inf)
    return float(distances.min())


def structure_valid(crystal: Crystal | None) -> tuple[bool, float]:
    """Whether all sites are at least 0.5 Å apart in a cell of at least 0.1 Å^3, and the shortest distance in Å.

    The distance is NaN where the cell is too small or not finite for it to have a meaning.
    """
    if crystal is None or len(crystal) == 0:
        return False, math.nan
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac).all()):
        return False, math.nan
    if not crystal.volume >= MIN_VOLUME:
        return False, math.nan
    distance = min_distance(crystal)
    return distance >= MIN_DISTANCE, distance


def composition_valid(crystal: Crystal | None) -> bool:
    """Whether some assignment of oxidation states is neutral and puts the charges where electronegativity wants them.

    One element alone and alloys (metals only) are valid by definition.
    """
    if crystal is None or len(crystal) == 0:
        return False
    return _composition_valid(reduced_composition(crystal))


def reduced_composition(crystal: Crystal) -> tuple[tuple[int, int], ...]:
    """Sorted pairs (atomic number, count), counts divided by their greatest common divisor.

    >>> reduced_composition(Crystal.of(np.eye(3), [8, 22, 8, 22, 8, 8], np.zeros((6, 3))))
    ((8, 2), (22, 1))
    """
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    divisor = math.gcd(*(int(count) for count in counts))
    return tuple((int(z), int(count) // divisor) for z, count in zip(numbers, counts, strict=True))


@lru_cache(maxsize=100_000)
def _composition_valid(composition: tuple[tuple[int, int], ...]) -> bool:
    if len(composition) == 1:
        return True
    elements = [_element(z) for z, _ in composition]
    if all(is_metal for _, _, is_metal in elements):
        return True
    counts = [count for _, count in composition]
    known = [value for _, value, _ in elements if value is not None]
    if len(known) < len(elements):
        return _can_be_neutral([states for states, _, _ in elements], counts)
    # No cation is as electronegative as an anion: that is, some value has all cations at or below it and all anions
    # above. Every such value is tried, which is what the definition's walk over all assignments finds, but its cost
    # does not multiply with each further element.
    for limit in set(known):
        allowed = [
            tuple(state for state in states if (state >= 0 if value <= limit else state <= 0))
            for (states, _, _), value in zip(elements, known, strict=True)
        ]
        if _can_be_neutral(allowed, counts):
            return True
    return False


def _can_be_neutral(states: list[tuple[int, ...]], counts: list[int]) -> bool:
    """Whether one state for each element makes the charges cancel."""
    charges = {0}
    for choices, count in zip(states, counts, strict=True):
        charges = {charge + state * count for charge in charges for state in choices}
    return 0 in charges


@cache
def _element(z: int) -> tuple[tuple[int, ...], float | None, bool]:
    """Oxidation states (SMACT's 2014 set, the one CDVAE used), Pauling electronegativity, whether a metal."""
    try:
        import smact
    except ImportError as error:
        raise missing_extra("smact", "evaluation", error) from error
    from pymatgen.core.periodic_table import Element

    symbol = Element.from_Z(z).symbol
    try:
        element = smact.Element(symbol)
    except (KeyError, NameError):  # elements that SMACT does not have; which one it raises depends on its version
        return (), None, False
    return tuple(element.oxidation_states_smact14 or ()), element.pauling_eneg, symbol in smact.metals
