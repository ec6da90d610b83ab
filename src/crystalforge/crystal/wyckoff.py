"""Space groups as tables: Wyckoff positions, what is free in them, and what the lattice may vary.

Every table is built on first use and then shared, read-only; importing the module costs nothing. `build_tables`
says where the numbers come from and in which settings.

Two masks tell which coordinates of a position matter. `varies` marks each coordinate that is not a constant, as the
published model scores them. `is_free` marks each one that is not a function of earlier ones: in `(x, 2x, z)` y
varies but is not free. They differ in 183 positions of 104 groups, by 219 coordinates. A density over the
coordinates is a probability only if it runs over the free ones.

Indices: g = space group number 1..230 (row g - 1 of the tables), w = Wyckoff letter (a = 1 ... z = 26, A = 27,
0 = pad), M = multiplicity, k = centring vectors, T = 14433 orbit operations in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

from crystalforge.common.errors import InputError

CrystalSystem = Literal["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"]
N_GROUPS = 230
TABLE_PATH = Path(__file__).with_name("wyckoff.npz")
TRANSLATION_UNIT = 24  # 1/8 occurs in cubic groups and 1/3 in trigonal ones: 24 is their common denominator
_SYSTEM_ENDS: tuple[tuple[int, CrystalSystem], ...] = (
    (2, "triclinic"), (15, "monoclinic"), (74, "orthorhombic"), (142, "tetragonal"), (167, "trigonal"),
    (194, "hexagonal"), (230, "cubic"),
)  # fmt: skip
_LATTICE_FREE: dict[CrystalSystem, tuple[int, ...]] = {
    "triclinic": (1, 1, 1, 1, 1, 1),
    "monoclinic": (1, 1, 1, 0, 1, 0),
    "orthorhombic": (1, 1, 1, 0, 0, 0),
    "tetragonal": (1, 0, 1, 0, 0, 0),
    "trigonal": (1, 0, 1, 0, 0, 0),
    "hexagonal": (1, 0, 1, 0, 0, 0),
    "cubic": (1, 0, 0, 0, 0, 0),
}
_LETTERS = "-abcdefghijklmnopqrstuvwxyzA"


@dataclass(frozen=True, eq=False)
class OperationTable:
    """The orbit operations of all positions laid end to end.

    Operation m of (g, w) is row `offset[g - 1, w] + m`: x' = rotation @ x + translation, translations as floats.
    """

    rotations: Int8[np.ndarray, "T 3 3"]
    translations: Float64[np.ndarray, "T 3"]
    offset: Int64[np.ndarray, "230 28"]


@cache
def _raw() -> dict[str, np.ndarray]:
    with np.load(TABLE_PATH) as archive:
        return {name: _frozen(archive[name]) for name in archive.files}


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@cache
def multiplicity() -> Int32[np.ndarray, "230 28"]:
    """Points of each orbit in the conventional cell; 0 for the pad and for letters a group does not have."""
    return _frozen(_raw()["multiplicity"].astype(np.int32))


@cache
def n_letters() -> Int32[np.ndarray, " 230"]:
    """Number of Wyckoff letters of each group, which is also the index of its general position."""
    return _frozen(_raw()["n_letters"].astype(np.int32))


@cache
def hall_numbers() -> Int32[np.ndarray, " 230"]:
    """spglib's serial number of the setting in which the positions of each group are given."""
    return _frozen(_raw()["hall"].astype(np.int32))


@cache
def operation_table() -> OperationTable:
    """All orbit operations, for vectorised gathers."""
    counts = multiplicity().astype(np.int64).ravel()
    offset = (np.cumsum(counts) - counts).reshape(N_GROUPS, 28)
    translations = _raw()["translations"] / float(TRANSLATION_UNIT)
    return OperationTable(_raw()["rotations"], _frozen(translations), _frozen(offset))


def operations(g: int, w: int) -> Float64[np.ndarray, "M 3 4"]:
    """Affine maps of the M points of an orbit, the representative first; raises InputError for no such position.

    >>> operations(2, 1)[0].tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    check_spacegroup(g)
    if not 1 <= w <= n_letters()[g - 1]:
        raise InputError(
            f"space group {g} has no Wyckoff position with index {w}",
            remedy=f"use 1 ('a') to {n_letters()[g - 1]} ('{letter_name(int(n_letters()[g - 1]))}')",
        )
    table = operation_table()
    start = int(table.offset[g - 1, w])
    part = slice(start, start + int(multiplicity()[g - 1, w]))
    return np.concatenate([table.rotations[part], table.translations[part, :, None]], axis=2)


@cache
def representatives() -> Float64[np.ndarray, "230 28 3 4"]:
    """First operation of every position: it maps a point to its orbit's representative. Zeros where there is none."""
    table, result = operation_table(), np.zeros((N_GROUPS, 28, 3, 4))
    exists = multiplicity() > 0
    rows = table.offset[exists]
    result[exists, :, :3] = table.rotations[rows]
    result[exists, :, 3] = table.translations[rows]
    return _frozen(result)


@cache
def varies() -> Bool[np.ndarray, "230 28 3"]:
    """Coordinates of the representative that are not constants (what the published model scores)."""
    return _frozen(np.asarray(representatives()[..., :3].any(axis=-1)))


@cache
def is_free() -> Bool[np.ndarray, "230 28 3"]:
    """Coordinates of the representative that earlier ones do not determine.

    A coordinate is free when its row of the representative's linear part is linearly independent of the rows above
    it; the number of free coordinates is the rank, the true number of degrees of freedom.
    """
    linear = representatives()[..., :3]
    rank = np.stack([np.linalg.matrix_rank(linear[..., : rows + 1, :]) for rows in range(3)], axis=-1)
    return _frozen(np.diff(rank, axis=-1, prepend=0) > 0)


@cache
def is_fixed() -> Bool[np.ndarray, "230 28"]:
    """Positions without any free coordinate, which a crystal can occupy only once; pads and absent letters too."""
    return _frozen(np.asarray(~varies().any(axis=-1)))


@cache
def lattice_free() -> Bool[np.ndarray, "230 6"]:
    """Which of a, b, c, alpha, beta, gamma a group's crystal system leaves free."""
    return _frozen(np.array([_LATTICE_FREE[crystal_system(g)] for g in range(1, N_GROUPS + 1)], dtype=bool))


@cache
def centring(g: int) -> Float64[np.ndarray, "k 3"]:
    """Lattice translations of the conventional cell, the zero vector first: k = 1 (P), 2 (A, C, I), 3 (R) or 4 (F)."""
    general = operations(g, int(n_letters()[g - 1]))
    pure = (general[:, :, :3] == np.eye(3)).all(axis=(1, 2))
    return _frozen(general[pure, :, 3] % 1.0)


def crystal_system(g: int) -> CrystalSystem:
    """Crystal system of a space group.

    >>> crystal_system(166)
    'trigonal'
    """
    check_spacegroup(g)
    return next(name for last, name in _SYSTEM_ENDS if g <= last)


def letter_name(w: int) -> str:
    """The letter of a Wyckoff index: 1 = 'a' ... 26 = 'z', 27 = 'A', 0 (pad) = '-'.

    >>> letter_name(5)
    'e'
    """
    return _LETTERS[w]


def letter_index(letter: str) -> int:
    """The Wyckoff index of a letter; raises InputError when it is none.

    >>> letter_index("e")
    5
    """
    index = _LETTERS.find(letter) if len(letter) == 1 else -1
    if index < 1:
        raise InputError(f"{letter!r} is not a Wyckoff letter", remedy="use 'a' to 'z', or 'A' in space group 47")
    return index


def check_spacegroup(g: int) -> None:
    """Raise InputError unless `g` is the number of a space group."""
    if not 1 <= g <= N_GROUPS:
        raise InputError(f"there is no space group {g}", remedy="use a number from 1 to 230")
