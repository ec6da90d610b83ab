"""Cheap checks that every crystal passes before a model sees it, vectorised over the batch.

Hostile structures (overlapping atoms, absurd cells, unknown elements, NaN) end here, with a status. Shape: B crystals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.geometry import FARTHEST_IMAGE, atoms_apart, cells_sound
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.constraints.elements import atomic_number
from crystalforge.rewards.config import Guards
from crystalforge.rewards.protocol import Status


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
    packed = PackedCrystals.pack(crystals)
    rows = np.flatnonzero(status == Status.OK)
    status[rows[~cells_sound(packed.take(rows), guards)]] = Status.BAD_CELL
    for row, crystal in enumerate(crystals):
        if crystal is not None and status[row] == Status.OK:
            kinds = set(crystal.numbers.tolist())
            if not kinds <= allowed:
                status[row] = Status.UNKNOWN_ELEMENT
            elif len(kinds) < guards.min_elements or (wish is not None and not meets(crystal, wish)):
                status[row] = Status.EXCLUDED
    rows = np.flatnonzero(status == Status.OK)
    status[rows[~atoms_apart(packed.take(rows), guards)]] = Status.TOO_CLOSE
    return status


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
