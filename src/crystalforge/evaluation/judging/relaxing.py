"""Relaxation as a part of an evaluation: where do the generated crystals come to rest, and how far is it?

Not every crystal need be relaxed: `chosen_rows` draws a subset by the seed, the same one for every model with that
seed, and what is said of relaxed crystals has the subset's size as its denominator.

Shapes: n crystals, k chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64

from crystalforge.common.files import sha256_json
from crystalforge.common.seeds import derived
from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching.matcher import Matcher
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.validity import structure_valid

if TYPE_CHECKING:
    from crystalforge.evaluation.config import RelaxSettings
    from crystalforge.potentials.base import Potential


@dataclass(frozen=True, eq=False)
class Relaxations:
    """One row per crystal. crystals: relaxed, atoms in the same order, None where it failed; converged: whether the
    forces ended below the limit; steps: how many were made."""

    crystals: list[Crystal | None]
    converged: Bool[np.ndarray, " n"]
    steps: Int32[np.ndarray, " n"]


@runtime_checkable
class Relaxer(Protocol):
    """Moves crystals to a minimum of their energy."""

    def identity(self) -> str:
        """Hash of everything that decides the result."""
        ...

    def relax(self, crystals: Sequence[Crystal]) -> Relaxations:
        """Relax each; a crystal that has not converged is returned where it stands."""
        ...


class PotentialRelaxer:
    """Relaxes cell and atoms with an interatomic potential until all forces are below `fmax` eV/Å."""

    def __init__(self, potential: Potential, *, fmax: float = 0.1, steps: int = 200) -> None:
        self._potential, self._fmax, self._steps = potential, fmax, steps

    @classmethod
    def of(cls, settings: RelaxSettings) -> PotentialRelaxer:
        """Load the potential that the settings name; raises InputError when it is not to be had."""
        from crystalforge.potentials import load

        return cls(load(settings.potential), fmax=settings.fmax, steps=settings.steps)

    @property
    def name(self) -> str:
        """The potential's name, for people."""
        return self._potential.name

    def identity(self) -> str:
        """Hash of the potential and the settings."""
        return sha256_json({"potential": self._potential.digest, "fmax": self._fmax, "steps": self._steps})

    def relax(self, crystals: Sequence[Crystal]) -> Relaxations:
        """See `Relaxer`."""
        from crystalforge.potentials.relax import relax

        found = relax(self._potential, crystals, fmax=self._fmax, steps=self._steps)
        return Relaxations(
            [
                crystal if problem is None else None
                for crystal, problem in zip(found.crystals, found.problems, strict=True)
            ],
            found.converged,
            found.steps,
        )


def chosen_rows(size: int, most: int | None, seed: int) -> Int64[np.ndarray, " k"]:
    """Rows of the crystals to relax, all or `most` of them, in an order drawn by the seed: a smaller choice is the
    beginning of a larger one.

    >>> len(chosen_rows(100, 7, 0)), sorted(chosen_rows(3, None, 0).tolist())
    (7, [0, 1, 2])
    """
    order = np.random.default_rng(derived(seed, "relax")).permutation(size).astype(np.int64)
    return order if most is None else order[:most]


def relaxed_table(relaxer: Relaxer, before: Sequence[Crystal | None]) -> pa.Table:
    """Relax the crystals of valid structure. One row for each crystal given, with the columns

    relaxed_lattice, relaxed_frac_coords: empty where there was nothing to relax or it failed; relaxed_converged,
    relaxed_steps; relaxed_rms: displacement between the generated and the relaxed crystal as StructureMatcher finds
    it, in units of (volume per atom)^(1/3); relaxed_rmsd: the same in Å. Both are NaN where the crystal has become
    another one.
    """
    rows = [row for row, crystal in enumerate(before) if structure_valid(crystal)[0]]
    found = relaxer.relax([crystal for row in rows if (crystal := before[row]) is not None])
    assert len(found.crystals) == len(rows), "a relaxer must answer for every crystal"
    after: list[Crystal | None] = [None] * len(before)
    converged, steps = np.zeros(len(before), dtype=bool), np.zeros(len(before), dtype=np.int32)
    converged[rows], steps[rows] = found.converged, found.steps
    for row, crystal in zip(rows, found.crystals, strict=True):
        after[row] = crystal
    matcher = Matcher(MatcherSettings())
    rms = np.full(len(before), math.nan)
    rmsd = np.full(len(before), math.nan)
    for row, (start, end) in enumerate(zip(before, after, strict=True)):
        first, second = matcher.reduce(start), matcher.reduce(end)
        if start is None or end is None or first is None or second is None:
            continue
        distance = matcher.rms(first, second)
        if math.isfinite(distance):
            rms[row] = distance
            # The matcher brings both cells to the geometric mean of their volumes before it measures.
            rmsd[row] = distance * (start.volume * end.volume) ** (1 / 6) / len(start) ** (1 / 3)
    numbers = pa.list_(pa.float64())
    return pa.table(
        {
            "relaxed_lattice": pa.array([[] if c is None else c.lattice.ravel().tolist() for c in after], numbers),
            "relaxed_frac_coords": pa.array([[] if c is None else c.frac.ravel().tolist() for c in after], numbers),
            "relaxed_converged": converged,
            "relaxed_steps": steps,
            "relaxed_rms": rms,
            "relaxed_rmsd": rmsd,
        }
    )


def relaxed_crystals(numbers: Sequence[Sequence[int]], table: pa.Table) -> list[Crystal | None]:
    """The relaxed crystals of rows with these atomic numbers and the columns of `relaxed_table`."""
    columns = (table.column(name).to_pylist() for name in ("relaxed_lattice", "relaxed_frac_coords"))
    return [
        Crystal.of(lattice, kinds, frac) if lattice else None
        for kinds, lattice, frac in zip(numbers, *columns, strict=True)
    ]
