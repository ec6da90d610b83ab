"""Tokens -> crystals: every site expands into its orbit, all sites of a batch at once.

Shapes: B crystals, S site slots, K sites of all crystals together, N atoms of all crystals together.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, Float64, Int64

from crystalforge.crystal import lattice, wyckoff
from crystalforge.crystal.crystal import Crystal, PackedCrystals
from crystalforge.crystal.tokens import ATOM_TYPES, Tokens

# A point this close (fractional) to its image under the representative lies on its Wyckoff position: 16 units in the
# last place of a float32 coordinate, below 1e-4 Å in any cell of interest.
ON_POSITION = 1e-6

# Basis vectors (rows, in the conventional basis) of the primitive cell for each centring, as spglib chooses them.
_PRIMITIVE_BASIS = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    "C": ((1 / 2, 1 / 2, 0), (-1 / 2, 1 / 2, 0), (0, 0, 1)),
    "I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    "F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}
_CENTRING_VECTOR = {"A": (0, 0.5, 0.5), "C": (0.5, 0.5, 0), "I": (0.5, 0.5, 0.5), "R": (2 / 3, 1 / 3, 1 / 3)}


@cache
def primitive_bases() -> tuple[Float64[np.ndarray, "230 3 3"], Int64[np.ndarray, " 230"]]:
    """Row vectors of each group's primitive cell in its conventional basis, and how many of it make that cell."""
    bases, orders = np.zeros((wyckoff.N_GROUPS, 3, 3)), np.zeros(wyckoff.N_GROUPS, dtype=np.int64)
    for g in range(1, wyckoff.N_GROUPS + 1):
        vectors = wyckoff.centring(g)
        symbol = {1: "P", 4: "F"}.get(len(vectors), "")
        if not symbol:
            symbol = next(
                name for name, vector in _CENTRING_VECTOR.items() if (abs(vectors - vector) < 1e-9).all(1).any()
            )
        bases[g - 1], orders[g - 1] = _PRIMITIVE_BASIS[symbol], len(vectors)
    return bases, orders


def representative_error(
    g: Int64[np.ndarray, " K"], w: Int64[np.ndarray, " K"], points: Float64[np.ndarray, "K 3"]
) -> Float64[np.ndarray, " K"]:
    """Squared fractional distance of each point to its own image under the representative of (g, w)."""
    operation = wyckoff.representatives()[g - 1, w]
    moved = np.einsum("kij,kj->ki", operation[:, :, :3], points) + operation[:, :, 3] - points
    return ((moved - np.rint(moved)) ** 2).sum(axis=1)


def to_representative(
    g: Int64[np.ndarray, " K"], w: Int64[np.ndarray, " K"], points: Float64[np.ndarray, "K 3"]
) -> Float64[np.ndarray, "K 3"]:
    """For each point the symmetry-equivalent one, in [0, 1), that lies on (or nearest) its position's representative.

    A point already there is returned as it is. Otherwise it is the first image under the general position with the
    least distance.
    """
    result = points % 1.0
    table, general = wyckoff.operation_table(), wyckoff.n_letters()
    for k in np.flatnonzero(representative_error(g, w, result) > ON_POSITION**2):
        top = int(general[g[k] - 1])
        start, count = int(table.offset[g[k] - 1, top]), int(wyckoff.multiplicity()[g[k] - 1, top])
        rows = slice(start, start + count)
        images = (table.rotations[rows] @ result[k] + table.translations[rows]) % 1.0
        error = representative_error(np.repeat(g[k : k + 1], count), np.repeat(w[k : k + 1], count), images)
        result[k] = images[np.argmin(error)]
    return result


def expand(
    g: Int64[np.ndarray, " K"], w: Int64[np.ndarray, " K"], points: Float64[np.ndarray, "K 3"],
    counts: Int64[np.ndarray, " K"],
) -> Float64[np.ndarray, "N 3"]:  # fmt: skip
    """The first `counts` points of the orbit of each site, site after site, in [0, 1)."""
    table = wyckoff.operation_table()
    ends = np.cumsum(counts)
    rows = np.repeat(table.offset[g - 1, w] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
    start = np.repeat(to_representative(g, w, points), counts, axis=0)
    moved = np.einsum("nij,nj->ni", table.rotations[rows].astype(np.float64), start) + table.translations[rows]
    moved %= 1.0
    moved[moved == 1.0] = 0.0  # -1e-17 % 1 is 1 in floating point
    return moved


def _well_formed(tokens: Tokens) -> Bool[np.ndarray, " B"]:
    site = tokens.is_site
    letters = wyckoff.n_letters()[np.clip(tokens.spacegroup, 1, wyckoff.N_GROUPS) - 1]
    return (
        ((tokens.spacegroup >= 1) & (tokens.spacegroup <= wyckoff.N_GROUPS))
        & site.any(axis=1)
        & ((tokens.wyckoff >= 0) & (tokens.wyckoff <= letters[:, None])).all(axis=1)
        & ((tokens.element > 0) & (tokens.element < ATOM_TYPES) | ~site).all(axis=1)
        & np.isfinite(tokens.coords).all(axis=(1, 2))
    )


def to_packed(tokens: Tokens, *, primitive: bool = False) -> PackedCrystals:
    """Crystals of tokens, laid end to end; one whose tokens make no cell is empty (n_atoms 0).

    The conventional cell, or with `primitive` the primitive one: same crystal, up to four times fewer atoms. Atoms
    follow the sites' order. Lattice components that the crystal system prescribes are not read. No distance is
    checked and no atom merged: coordinates that happen to fall on a more special position give overlapping atoms.
    """
    parameters = lattice.symmetrize(np.clip(tokens.spacegroup, 1, wyckoff.N_GROUPS), tokens.lattice)
    good = np.flatnonzero(_well_formed(tokens) & lattice.is_cell(parameters))
    kept = tokens[good]
    row, slot = np.nonzero(kept.is_site)
    g = kept.spacegroup.astype(np.int64)[row]
    w = kept.wyckoff.astype(np.int64)[row, slot]
    sizes = wyckoff.multiplicity()[g - 1, w].astype(np.int64)
    atoms = np.bincount(row, weights=sizes, minlength=len(kept)).astype(np.int64)
    cells = parameters[good]
    cells[:, :3] *= np.cbrt(atoms)[:, None]
    matrices = lattice.to_matrix(cells)
    bases, orders = primitive_bases()
    group = kept.spacegroup - 1
    if primitive:
        # The operations of a position come centring block by centring block, so the first M/k points are one atom of
        # each set that the centring relates (tests check this for all 1731 positions).
        sizes = sizes // orders[g - 1]
        atoms = atoms // orders[group]
        matrices = bases[group] @ matrices
    frac = expand(g, w, kept.coords[row, slot], sizes)
    if primitive:
        to_primitive = np.linalg.inv(bases)[np.repeat(group, atoms)]
        frac = np.einsum("ni,nij->nj", frac, to_primitive) % 1.0
        frac[frac == 1.0] = 0.0
    n_atoms = np.zeros(len(tokens), dtype=np.int32)
    n_atoms[good] = atoms
    full = np.zeros((len(tokens), 3, 3))
    full[good] = matrices
    return PackedCrystals(full, n_atoms, np.repeat(kept.element[row, slot], sizes).astype(np.int32), frac)


def to_crystals(tokens: Tokens, *, primitive: bool = False) -> list[Crystal | None]:
    """Crystals of tokens, None where they make no cell (see `to_packed`).

    >>> rock_salt = Tokens(np.int32([225]), np.int32([[1, 2]]), np.int32([[11, 17]]),
    ...                    np.array([[[0, 0, 0], [.5, .5, .5]]]), np.array([[2.82] * 3 + [np.pi / 2] * 3]))
    >>> [len(to_crystals(rock_salt, primitive=primitive)[0]) for primitive in (False, True)]
    [8, 2]
    """
    return to_packed(tokens, primitive=primitive).unpack()
