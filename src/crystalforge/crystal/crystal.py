"""The plain record of a crystal that every layer shares, and its flat form for the wire and for columns.

Shapes: n atoms in the cell, B crystals, N = sum of their n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic arrangement of atoms.

    lattice: row vectors in Å; numbers: atomic numbers; frac: fractional coordinates (any image).

    >>> salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> salt.formula
    'Na1 Cl1'
    """

    lattice: Float64[np.ndarray, "3 3"]
    numbers: Int32[np.ndarray, " n"]
    frac: Float64[np.ndarray, "n 3"]

    @classmethod
    def of(cls, lattice: Any, numbers: Any, frac: Any) -> Crystal:
        """A crystal from anything numpy can read as the three arrays."""
        return cls(
            np.asarray(lattice, dtype=np.float64).reshape(3, 3),
            np.asarray(numbers, dtype=np.int32).reshape(-1),
            np.asarray(frac, dtype=np.float64).reshape(-1, 3),
        )

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """From a pymatgen structure; raises ValueError when a site is partially occupied."""
        if not structure.is_ordered:
            raise ValueError(f"{structure.formula}: partially occupied sites are not supported")
        return cls.of(structure.lattice.matrix, structure.atomic_numbers, structure.frac_coords)

    def to_structure(self) -> Structure:
        """As a pymatgen structure. No check is made here: absurd cells pass and fail where they are used."""
        from pymatgen.core import Element, Lattice, Structure

        species = [Element.from_Z(int(z)) for z in self.numbers]
        return Structure(Lattice(self.lattice), species, self.frac)

    @property
    def volume(self) -> float:
        """Cell volume in Å^3 (never negative)."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def formula(self) -> str:
        """Formula of the whole cell with symbols in order of appearance."""
        from pymatgen.core.periodic_table import Element

        counts: dict[int, int] = {}
        for z in self.numbers:
            counts[int(z)] = counts.get(int(z), 0) + 1
        return " ".join(f"{Element.from_Z(z).symbol}{count}" for z, count in counts.items())

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, eq=False)
class PackedCrystals:
    """B crystals laid end to end: the form of the columnar files and of the reward service's requests.

    An empty crystal (n_atoms 0) stands for one that could not be built; its lattice is all zeros.
    """

    lattice: Float64[np.ndarray, "B 3 3"]
    n_atoms: Int32[np.ndarray, " B"]
    numbers: Int32[np.ndarray, " N"]
    frac: Float64[np.ndarray, "N 3"]

    @classmethod
    def pack(cls, crystals: Sequence[Crystal | None]) -> PackedCrystals:
        """Lay crystals end to end; None becomes an empty crystal, so that positions are kept."""
        empty = Crystal.of(np.zeros((3, 3)), [], [])
        rows = [empty if crystal is None else crystal for crystal in crystals]
        if not rows:
            return cls(np.zeros((0, 3, 3)), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3)))
        return cls(
            np.stack([row.lattice for row in rows]),
            np.array([len(row) for row in rows], dtype=np.int32),
            np.concatenate([row.numbers for row in rows]),
            np.concatenate([row.frac for row in rows]),
        )

    def take(self, rows: Int64[np.ndarray, " m"]) -> PackedCrystals:
        """Some of the crystals, in the order of `rows`."""
        count = self.n_atoms[rows].astype(np.int64)
        starts = np.cumsum(self.n_atoms, dtype=np.int64) - self.n_atoms
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        atoms = np.repeat(starts[rows], count) + within
        return PackedCrystals(self.lattice[rows], self.n_atoms[rows], self.numbers[atoms], self.frac[atoms])

    def unpack(self) -> list[Crystal | None]:
        """The crystals again; empty ones come back as None."""
        return list(self)

    def __iter__(self) -> Iterator[Crystal | None]:
        ends = np.cumsum(self.n_atoms)
        for lattice, end, count in zip(self.lattice, ends, self.n_atoms, strict=True):
            part = slice(int(end - count), int(end))
            yield Crystal(lattice, self.numbers[part], self.frac[part]) if count else None

    def __len__(self) -> int:
        return len(self.n_atoms)
