"""Cheap checks that every crystal passes before a model sees it, vectorised over the batch.

Hostile structures (overlapping atoms, absurd cells, unknown elements, NaN) end here, with a status.

Shapes: B crystals, N their atoms laid end to end, P pairs of atoms of one crystal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float64, Int32

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.constraints.elements import atomic_number
from crystalforge.potentials.base import cell_heights
from crystalforge.potentials.neighbors import neighbor_list
from crystalforge.rewards.config import Guards
from crystalforge.rewards.protocol import Status

FARTHEST_IMAGE = 1e6
"""Any image of an atom will do, but beyond this many cells away rounding eats its position (1e-10 of a cell)."""


def check(
    crystals: Sequence[Crystal | None], guards: Guards, elements: frozenset[int] | None
) -> Int32[np.ndarray, " B"]:
    """Status of each crystal: OK, or why no model may see it. `elements`: what the model knows, None for all.

    The first of these that applies: NOT_BUILT, TOO_LARGE, BAD_CELL, UNKNOWN_ELEMENT, EXCLUDED, TOO_CLOSE.
    """
    status = np.full(len(crystals), Status.OK, dtype=np.int32)
    allowed = frozenset(range(1, 119)) if elements is None else elements
    if guards.elements is not None:
        allowed &= frozenset(guards.elements)
    wish = None if guards.chemistry is None else guards.chemistry.constraints()
    for row, crystal in enumerate(crystals):
        if crystal is None or not len(crystal):
            status[row] = Status.NOT_BUILT
        elif len(crystal) > guards.max_atoms:
            status[row] = Status.TOO_LARGE
        elif not (np.isfinite(crystal.lattice).all() and (np.abs(crystal.frac) <= FARTHEST_IMAGE).all()):
            status[row] = Status.BAD_CELL
    rows = np.flatnonzero(status == Status.OK)
    if not len(rows):
        return status
    chosen = [crystal for row in rows.tolist() if (crystal := crystals[row]) is not None]
    status[rows] = _cells(chosen, guards)
    for row, crystal in zip(rows, chosen, strict=True):
        if status[row] == Status.OK:
            kinds = set(crystal.numbers.tolist())
            if not kinds <= allowed:
                status[row] = Status.UNKNOWN_ELEMENT
            elif len(kinds) < guards.min_elements or (wish is not None and not meets(crystal, wish)):
                status[row] = Status.EXCLUDED
    rows = np.flatnonzero(status == Status.OK)
    chosen = [crystal for row in rows.tolist() if (crystal := crystals[row]) is not None]
    close = closest_approach(chosen, guards.min_distance) < guards.min_distance
    status[rows[close]] = Status.TOO_CLOSE
    if guards.min_bond is not None:
        rows = rows[~close]
        short = shortest_bond([crystal for row in rows.tolist() if (crystal := crystals[row]) is not None])
        status[rows[short < guards.min_bond]] = Status.TOO_CLOSE
    return status


def shortest_bond(crystals: Sequence[Crystal]) -> Float64[np.ndarray, " B"]:
    """Least distance of two atoms, images included, as a part of the sum of their covalent radii; infinite where no two
    atoms are as close as that sum. Radii: Cordero et al., Dalton Trans. 2008, 2832. Of MP-20's crystals one in a
    thousand is below 0.7, six in a thousand are below 0.75.
    """
    radii = _covalent_radii()
    nearest = np.full(len(crystals), np.inf)
    for row, crystal in enumerate(crystals):
        own = radii[crystal.numbers]
        edges = neighbor_list([crystal], 2 * float(own.max()))
        if len(edges.distance):
            nearest[row] = float((edges.distance / (own[edges.center] + own[edges.neighbor])).min())
    return np.where(nearest < 1, nearest, np.inf)


@cache
def _covalent_radii() -> Float64[np.ndarray, " 119"]:
    """Å by atomic number; the few elements without a known radius get that of the last one with."""
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core.periodic_table import Element

    known = {Element(symbol).Z: float(radius) for symbol, radius in CovalentRadius.radius.items()}
    return np.array([known.get(z, known[max(known)]) for z in range(119)])


def meets(crystal: Crystal, wish: Constraints) -> bool:
    """Whether a crystal is made of what `wish` allows and demands, whatever its sites and its size.

    >>> salt = Crystal.of(np.eye(3) * 4, [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> meets(salt, Constraints(chemical_system="Na-Cl")), meets(salt, Constraints(composition="NaCl2"))
    (True, False)
    """
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    if not wish.allowed_elements()[numbers].all():
        return False
    required = {atomic_number(symbol) for symbol in wish.required_elements()}
    if required and required != set(numbers.tolist()):
        return False
    if wish.composition is None:
        return True
    wanted = {atomic_number(symbol): count for symbol, count in wish.composition.items()}
    divisor = int(np.gcd.reduce(counts))
    return all(wanted[int(z)] * divisor == int(count) for z, count in zip(numbers, counts, strict=True))


def _cells(crystals: Sequence[Crystal], guards: Guards) -> Int32[np.ndarray, " B"]:
    lattice = np.stack([crystal.lattice for crystal in crystals])
    with np.errstate(over="ignore"):  # a length that overflows is too long
        lengths = np.linalg.norm(lattice, axis=2).max(axis=1)
    # Lengths first: the determinant of an absurd cell may overflow.
    sane = lengths <= guards.max_length
    volume = np.zeros(len(crystals))
    volume[sane] = np.abs(np.linalg.det(lattice[sane]))
    heights = np.zeros(len(crystals))
    heights[sane] = cell_heights(lattice[sane]).min(axis=1)
    per_atom = volume / np.array([len(crystal) for crystal in crystals])
    low, high = guards.volume_per_atom
    good = sane & (per_atom >= low) & (per_atom <= high) & (heights >= guards.min_height)
    return np.where(good, Status.OK, Status.BAD_CELL).astype(np.int32)


def closest_approach(crystals: Sequence[Crystal], cutoff: float) -> Float64[np.ndarray, " B"]:
    """Shortest distance between two atoms (periodic images included), Å; exact below `cutoff`, else at least
    that.

    A vector shorter than d has fractional components below d / height. Where that is at most one half for all
    three directions the nearest image is the only candidate, and all pairs of the batch are done in one go;
    cells flatter than that look at more images, one crystal at a time.
    """
    nearest = np.full(len(crystals), np.inf)
    if not len(crystals):
        return nearest
    packed = PackedCrystals.pack(crystals)
    ratio = cutoff / cell_heights(packed.lattice).min(axis=1)
    starts = np.cumsum(packed.n_atoms) - packed.n_atoms
    simple = ratio <= 0.5
    first, second, owner = _pairs(packed.n_atoms, starts, np.flatnonzero(simple))
    difference = packed.frac[first] - packed.frac[second]
    difference -= np.rint(difference)
    distance = np.linalg.norm(np.einsum("pi,pij->pj", difference, packed.lattice[owner]), axis=1)
    np.minimum.at(nearest, owner, distance)
    for row in np.flatnonzero(~simple):
        nearest[row] = _closest_in_flat_cell(packed.lattice[row], crystals[int(row)].frac, cutoff)
    return nearest


def _pairs(n_atoms: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of different atoms of the crystals `rows`: two atom indices and the crystal of each pair."""
    firsts, seconds, owners = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0, int)]
    for count in np.unique(n_atoms[rows]):
        same = rows[n_atoms[rows] == count]
        i, j = np.triu_indices(int(count), k=1)
        firsts.append((starts[same, None] + i).ravel())
        seconds.append((starts[same, None] + j).ravel())
        owners.append(np.repeat(same, len(i)))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(owners)


def _closest_in_flat_cell(lattice: np.ndarray, frac: np.ndarray, cutoff: float) -> float:
    reach = np.ceil(cutoff / cell_heights(lattice[None])[0] + 0.5).astype(int)
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), dtype=np.float64)
    i, j = np.triu_indices(len(frac))
    difference = frac[i] - frac[j]
    difference -= np.rint(difference)
    nearest = np.inf
    for image in images:
        distance = np.linalg.norm((difference + image) @ lattice, axis=1)
        if not image.any():
            distance = distance[i != j]
        nearest = min(nearest, float(distance.min(initial=np.inf)))
    return nearest
