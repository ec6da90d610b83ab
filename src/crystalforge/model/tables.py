"""The space groups' tables as tensors, one copy per device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crystalforge.crystal import wyckoff


@dataclass(frozen=True, eq=False)
class SymmetryTables:
    """What the laws ask of a space group g (row g - 1) and a Wyckoff letter w (column w; 0 = pad).

    multiplicity: atoms of the orbit in the conventional cell. n_letters: letters of the group. is_fixed: the
    position has no free coordinate (pads and unused letters count as fixed). varies: the coordinate is not a
    constant. is_free: the coordinate is independent of the ones before it. lattice_free: which of
    (a, b, c, alpha, beta, gamma) the crystal system leaves free.
    """

    multiplicity: Int64[Tensor, "230 28"]
    n_letters: Int64[Tensor, " 230"]
    is_fixed: Bool[Tensor, "230 28"]
    varies: Bool[Tensor, "230 28 3"]
    is_free: Bool[Tensor, "230 28 3"]
    lattice_free: Bool[Tensor, "230 6"]


def tables(device: torch.device | str) -> SymmetryTables:
    """The tables on `device`."""
    return _load(str(device))


@cache
def _load(device: str) -> SymmetryTables:
    def integers(array: object) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.int64, device=device)

    def flags(array: object) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.bool, device=device)

    return SymmetryTables(
        multiplicity=integers(wyckoff.multiplicity()),
        n_letters=integers(wyckoff.n_letters()),
        is_fixed=flags(wyckoff.is_fixed()),
        varies=flags(wyckoff.varies()),
        is_free=flags(wyckoff.is_free()),
        lattice_free=flags(wyckoff.lattice_free()),
    )
