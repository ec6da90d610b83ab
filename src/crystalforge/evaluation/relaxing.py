"""Relaxation as a part of an evaluation: where do the generated crystals come to rest, and how far is it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pyarrow as pa

from crystalforge.common.files import sha256_json
from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching import Matcher
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.validity import structure_valid

if TYPE_CHECKING:
    from crystalforge.potentials.base import Potential


@runtime_checkable
class Relaxer(Protocol):
    """Moves crystals to a minimum of their energy."""

    def identity(self) -> str:
        """Hash of everything that decides the result."""
        ...

    def relax(self, crystals: Sequence[Crystal]) -> list[Crystal | None]:
        """The relaxed crystals, atoms in the same order; None where the relaxation failed."""
        ...


class PotentialRelaxer:
    """Relaxes cell and atoms with an interatomic potential until all forces are below `fmax` eV/Å."""

    def __init__(self, potential: Potential, *, fmax: float = 0.1, steps: int = 200) -> None:
        self._potential, self._fmax, self._steps = potential, fmax, steps

    def identity(self) -> str:
        """Hash of the potential and the settings."""
        return sha256_json({"potential": self._potential.digest, "fmax": self._fmax, "steps": self._steps})

    def relax(self, crystals: Sequence[Crystal]) -> list[Crystal | None]:
        """See `Relaxer`. A crystal that has not converged after `steps` is returned where it stands."""
        from crystalforge.potentials.relax import relax

        found = relax(self._potential, crystals, fmax=self._fmax, steps=self._steps)
        return [
            crystal if problem is None else None
            for crystal, problem in zip(found.crystals, found.problems, strict=True)
        ]


def relaxed(relaxer: Relaxer, crystals: Sequence[Crystal | None]) -> list[Crystal | None]:
    """Relax the crystals of valid structure; None for the others and where relaxation failed."""
    rows = [row for row, crystal in enumerate(crystals) if structure_valid(crystal)[0]]
    found: list[Crystal | None] = [None] * len(crystals)
    chosen = [crystal for row in rows if (crystal := crystals[row]) is not None]
    for row, crystal in zip(rows, relaxer.relax(chosen), strict=True):
        found[row] = crystal
    return found


def relaxed_columns(before: Sequence[Crystal | None], after: Sequence[Crystal | None]) -> dict[str, pa.Array]:
    """Columns relaxed_lattice, relaxed_frac_coords and relaxed_rms.

    relaxed_rms: displacement between the generated and the relaxed crystal as StructureMatcher finds it, in units of
    (volume per atom)^(1/3); NaN where the crystal has become another one.
    """
    matcher = Matcher(MatcherSettings())
    rms = []
    for start, end in zip(before, after, strict=True):
        first, second = matcher.reduce(start), matcher.reduce(end)
        distance = math.inf if first is None or second is None else matcher.rms(first, second)
        rms.append(distance if math.isfinite(distance) else math.nan)
    return {
        "relaxed_lattice": pa.array(
            [[] if c is None else c.lattice.ravel().tolist() for c in after], pa.list_(pa.float64())
        ),
        "relaxed_frac_coords": pa.array(
            [[] if c is None else c.frac.ravel().tolist() for c in after], pa.list_(pa.float64())
        ),
        "relaxed_rms": pa.array(rms, pa.float64()),
    }
