"""Crystals as the model writes them: space group, Wyckoff letters, elements, coordinates, lattice.

Layout (CrystalFormer, arXiv 2403.15734): one row per crystal, S site slots, pads at the end.
Shapes: B crystals, S site slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

MAX_SITES = 21  # slots of the published model; one of them must stay empty for the lattice, so 20 sites at most
ATOM_TYPES = 119  # 0 = pad, then the atomic number
WYCKOFF_TYPES = 28  # 0 = pad, a = 1 ... z = 26, A = 27 (only group 47 has 27 letters)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A columnar batch of tokenised crystals.

    spacegroup: 1..230. wyckoff: 0 = pad, a = 1, ... element: atomic number, 0 = pad. coords: fractional
    coordinates of the first representative of each orbit, in [0, 1), pads exactly 0. lattice: (a, b, c)/N^(1/3)
    in Å with N the number of atoms in the conventional cell, then alpha, beta, gamma in radians.
    """

    spacegroup: Int32[np.ndarray, " B"]
    wyckoff: Int32[np.ndarray, "B S"]
    element: Int32[np.ndarray, "B S"]
    coords: Float64[np.ndarray, "B S 3"]
    lattice: Float64[np.ndarray, "B 6"]

    @property
    def n_sites(self) -> Int32[np.ndarray, " B"]:
        """Symmetry-inequivalent sites of each crystal."""
        return (self.wyckoff > 0).sum(axis=1, dtype=np.int32)

    @property
    def is_site(self) -> Bool[np.ndarray, "B S"]:
        """True where a slot holds a site."""
        return self.wyckoff > 0

    def __len__(self) -> int:
        return len(self.spacegroup)

    def __getitem__(self, index: Any) -> Tokens:
        """Rows by slice, mask or index array; an integer gives a batch of one."""
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        return Tokens(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def with_slots(self, slots: int) -> Tokens:
        """The same crystals in `slots` site slots; raises ValueError when one of them does not fit."""
        longest = int(self.n_sites.max(initial=0))
        if slots < longest:
            raise ValueError(f"a crystal has {longest} sites, more than the {slots} slots asked for")
        have = self.wyckoff.shape[1]

        def fit(array: np.ndarray) -> np.ndarray:
            if slots <= have:
                return array[:, :slots]
            return np.pad(array, [(0, 0), (0, slots - have)] + [(0, 0)] * (array.ndim - 2))

        return Tokens(self.spacegroup, fit(self.wyckoff), fit(self.element), fit(self.coords), self.lattice)

    @staticmethod
    def concatenate(parts: Sequence[Tokens]) -> Tokens:
        """Batches one after the other, in the widest number of slots among them."""
        slots = max((part.wyckoff.shape[1] for part in parts), default=MAX_SITES)
        if not parts:
            return Tokens.empty(slots)
        wide = [part.with_slots(slots) for part in parts]
        return Tokens(
            **{field.name: np.concatenate([getattr(part, field.name) for part in wide]) for field in fields(Tokens)}
        )

    @staticmethod
    def empty(slots: int = MAX_SITES) -> Tokens:
        """No crystals."""
        return Tokens(
            np.zeros(0, np.int32),
            np.zeros((0, slots), np.int32),
            np.zeros((0, slots), np.int32),
            np.zeros((0, slots, 3)),
            np.zeros((0, 6)),
        )
