"""The primitive cell of a crystal: the same crystal with the fewest atoms, found by its translations alone.

Crystals are generated in conventional cells, where a face-centred one holds everything four times. An energy per atom
does not depend on the cell, but the time for it does.

Shapes: n atoms of the cell, R of them of its rarest element, q lattice points in it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal import Crystal

SAME_PLACE = 1e-6
"""Å by which a translation may miss an atom. With forces of some eV/Å this is worth 1e-5 eV/atom at the very most."""

MOST_COMPARISONS = 1_000_000
"""Pairs of atoms times candidate translations; a cell that needs more is left as it is (its n exceeds 100)."""


def primitive_cell(crystal: Crystal) -> Crystal:
    """The crystal in a primitive cell, or itself where its cell is one already.

    The number of atoms divides the given one, so that an energy per cell scales with it. Expects finite numbers and a
    cell with a volume.
    """
    translations, order = _translations(crystal)
    points = len(translations) + 1
    if points == 1 or (basis := _basis(translations, points, crystal.lattice)) is None:
        return crystal
    # One atom of each orbit under the translations: the first.
    kept = np.flatnonzero((order >= np.arange(len(crystal))).all(axis=0))
    if len(kept) * points != len(crystal):
        return crystal
    frac = crystal.frac[kept] @ np.linalg.inv(basis)
    return Crystal(basis @ crystal.lattice, crystal.numbers[kept], frac - np.floor(frac))


def _translations(crystal: Crystal) -> tuple[Float64[np.ndarray, "T 3"], Int64[np.ndarray, "T n"]]:
    """Translations by less than a lattice vector that map the crystal onto itself, and where they take each atom."""
    kinds, counts = np.unique(crystal.numbers, return_counts=True)
    rarest = np.flatnonzero(crystal.numbers == kinds[counts.argmin()])
    none = np.zeros((0, 3)), np.zeros((0, len(crystal)), dtype=np.int64)
    if math.gcd(*counts.tolist()) == 1 or len(rarest) * len(crystal) ** 2 > MOST_COMPARISONS:
        return none
    candidates = crystal.frac[rarest[1:]] - crystal.frac[rarest[0]]
    for kind in kinds:  # one atom of each kind rules most candidates out
        _, reached = _images(crystal, candidates, np.flatnonzero(crystal.numbers == kind)[:1])
        candidates = candidates[reached[:, 0]]
        if not len(candidates):
            return none
    targets, reached = _images(crystal, candidates, np.arange(len(crystal)))
    # Each atom must be reached once: two atoms in one place would make a map that is none.
    good = reached.all(axis=1) & (np.sort(targets, axis=1) == np.arange(len(crystal))).all(axis=1)
    return candidates[good], targets[good]


def _images(
    crystal: Crystal, candidates: Float64[np.ndarray, "R 3"], atoms: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, "R m"], np.ndarray]:
    """For each candidate the atom of the same element nearest to each translated one, and whether it is there."""
    moved = crystal.frac[atoms] + candidates[:, None]
    difference = moved[:, :, None] - crystal.frac
    difference -= np.rint(difference)
    distance = np.square(difference @ crystal.lattice).sum(axis=-1)
    distance[:, crystal.numbers[atoms, None] != crystal.numbers] = np.inf
    nearest = distance.argmin(axis=-1)
    return nearest, np.take_along_axis(distance, nearest[..., None], axis=-1)[..., 0] < SAME_PLACE**2


def _basis(
    translations: Float64[np.ndarray, "T 3"], points: int, lattice: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "3 3"] | None:
    """Three short vectors (fractional) that span the finer lattice, right-handed as the given one is; None if the
    translations have none among them.
    """
    # Coordinates of a translation are multiples of 1/q: rounding them takes the noise out of the new cell.
    exact = np.rint((translations - np.rint(translations)) * points) / points
    vectors = np.concatenate([exact, np.eye(3)])
    vectors = vectors[np.argsort(np.linalg.norm(vectors @ lattice, axis=1).round(6), kind="stable")]
    for chosen in itertools.combinations(range(len(vectors)), 3):
        basis = vectors[list(chosen)]
        volume = np.linalg.det(basis)
        if abs(abs(volume) * points - 1) < 1e-6:
            return basis if volume > 0 else basis[[1, 0, 2]]
    return None
