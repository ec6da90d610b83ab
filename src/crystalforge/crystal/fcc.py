"""A short cut through the symmetry search for crystals on a face-centred cubic lattice.

One crystal in seven of the Materials Project has space group 225 (rock salt, Heusler, elpasolite ...), and for
each of its inequivalent atoms spglib compares all pairs of 192 operations under every Wyckoff letter until one
fits: most of the time of tokenising was spent there. All that is wanted of that search is the transformation to
the standard cell, and that depends on the operations alone. So the operations are found here, an imaginary
crystal is made of one atom in general position and its images, which spglib names at once because the general
position comes first, and its transformation is used for the real one.

It is taken only where nothing hangs on a tolerance: a primitive cell of an exactly cubic lattice, and every
operation either obeyed or broken by far. Everything else goes the long way; tests compare the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal.crystal import Crystal

# Where the second standardisation of the long way puts the origin of the first, in units of the cell. The first is
# in spglib's default setting; group 227 has its origin at -43m there and at -3m in the tables.
_ORIGIN = {216: 0.0, 225: 0.0, 227: -0.125}
# Last letter up to which the coordinates do not depend on the order in which spglib lists the centring's images.
LAST_LETTER = {216: 6, 225: 6, 227: 5}
_CLEAR = 0.1  # an operation is obeyed below this fraction of the tolerance, broken above its inverse
_GENERAL = np.array([0.0713, 0.1811, 0.3307])  # no two of its images near each other for any origin in practice
_MAX_WORK = 200_000  # atom pairs compared; beyond, the long way is not slower


@cache
def _cube() -> Float64[np.ndarray, "48 3 3"]:
    """The rotations and reflections of a cube, the identity first."""
    permutations = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]
    return np.array(
        [np.diag(signs) @ turn for signs in itertools.product((1.0, -1.0), repeat=3) for turn in permutations]
    )


@cache
def _near() -> Float64[np.ndarray, "124 3"]:
    """Steps to the lattice points around one; two cells far, for cells in other than their shortest vectors."""
    return np.array([step for step in itertools.product((-2.0, -1.0, 0.0, 1.0, 2.0), repeat=3) if any(step)])


def cubic_axes(lattice: Float64[np.ndarray, "3 3"], tolerance: float) -> Float64[np.ndarray, "3 3"] | None:
    """The cube's edges as whole multiples of the cell vectors (rows), or None if the cell is not primitive fcc."""
    lengths = np.sqrt(((_near() @ lattice) ** 2).sum(axis=1))
    shortest = lengths.min()
    if (np.abs(lengths - shortest) < tolerance).sum() != 12:
        return None
    edges = _near()[np.abs(lengths - np.sqrt(2) * shortest) < tolerance]
    if len(edges) != 6:
        return None
    first = edges[0]
    across = edges[np.abs((edges @ lattice) @ (first @ lattice)) < tolerance * shortest]
    if len(across) != 4:
        return None
    axes = np.stack([first, across[0], next(edge for edge in across[1:] if not np.array_equal(edge, -across[0]))])
    if np.linalg.det(axes @ lattice) < 0:
        axes[2] *= -1
    # Four lattice points to the cube, or the cell is not primitive.
    return axes if abs(abs(np.linalg.det(axes)) - 4) < 1e-6 else None


def operations(
    crystal: Crystal, axes: Float64[np.ndarray, "3 3"], symprec: float
) -> tuple[Float64[np.ndarray, "P 3 3"], Float64[np.ndarray, "P 3"]] | None:
    """Operations x' = x @ rotation + translation of the cell; None when one of them is a matter of tolerance."""
    turns = np.rint(np.linalg.inv(axes) @ _cube().transpose(0, 2, 1) @ axes)
    # The translations are measured on the atoms that spglib would measure them on, the first of the rarest kind:
    # where the origin could lie at either of two places, the last digits of a translation decide.
    kinds, seen, counts = np.unique(crystal.numbers, return_index=True, return_counts=True)
    kind = kinds[np.lexsort((seen, counts))[0]]
    rarest = np.flatnonzero(crystal.numbers == kind)
    if len(turns) * len(rarest) * len(crystal) ** 2 > _MAX_WORK:
        return None
    turned = crystal.frac @ turns
    shifts = crystal.frac[rarest] - turned[:, None, rarest[0]]
    delta = turned[:, None, :, None] + shifts[:, :, None, None] - crystal.frac
    delta = (delta - np.rint(delta)) @ crystal.lattice
    distance = np.sqrt((delta**2).sum(axis=-1))
    distance[..., crystal.numbers[:, None] != crystal.numbers] = np.inf
    miss = distance.min(axis=-1).max(axis=-1)
    obeyed = miss < _CLEAR * symprec
    if (~obeyed & (miss < symprec / _CLEAR)).any() or (obeyed.sum(axis=1) > 1).any():
        return None
    which = np.nonzero(obeyed)
    return turns[which[0]], shifts[which]


def standard_positions(
    crystal: Crystal, symprec: float, search: Callable[[tuple[Any, Any, Any], float, int], Any]
) -> tuple[int, Float64[np.ndarray, "3 3"], Float64[np.ndarray, "n 3"]] | None:
    """Group, standard cell and the atoms' positions in it (one of each set that the centring relates).

    None when the crystal does not qualify. search: spglib's dataset of a cell.
    """
    axes = cubic_axes(crystal.lattice, _CLEAR * symprec)
    found = None if axes is None else operations(crystal, axes, symprec)
    if found is None or len(found[0]) not in (24, 48):
        return None
    points = _GENERAL @ found[0] + found[1]
    dataset = search((crystal.lattice, points, np.ones(len(points), dtype=np.int32)), symprec, 0)
    if dataset is None or dataset.number not in _ORIGIN or len(dataset.rotations) != len(points):
        return None
    moved = crystal.frac @ dataset.transformation_matrix.T + dataset.origin_shift + _ORIGIN[dataset.number]
    return int(dataset.number), dataset.std_lattice, moved


def orbits(
    images: Float64[np.ndarray, "n M 3"], numbers: np.ndarray, cell: Float64[np.ndarray, "3 3"], symprec: float
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], Float64[np.ndarray, "K 3"]] | None:
    """First atom, size in the standard cell and exact position of each orbit.

    images: every atom under every operation of the general position, the identity first. The exact position is the
    mean of the atom's images that coincide with it.
    """
    left = np.ones(len(images), dtype=bool)
    first, size, exact = [], [], []
    for atom in range(len(images)):
        if not left[atom]:
            continue
        delta = images[atom][None] - images[:, :1]
        delta -= np.rint(delta)
        near = ((delta @ cell) ** 2).sum(axis=2) < symprec**2
        members = near.any(axis=1) & (numbers == numbers[atom])
        if not left[members].all():
            return None
        left &= ~members
        first.append(atom)
        size.append(images.shape[1] // int(near[atom].sum()))
        exact.append(images[atom, 0] + delta[atom, near[atom]].mean(axis=0))
    return np.array(first), np.array(size), np.array(exact)
