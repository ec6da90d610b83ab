"""Relaxation of positions and cell with FIRE (Bitzek et al., PRL 97, 170201 (2006)) under any potential."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential
from crystalforge.potentials.bridge import calculator, from_atoms, to_atoms

LARGEST_STEP = 0.1
"""Å (and, for the cell, the like of it) that FIRE may move in one step; half of ASE's default, since generated crystals
start with large forces."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """One row per crystal, in the order given.

    crystals: relaxed, or as given where there is a problem; energy: eV per cell, NaN where there is a problem;
    converged: whether all forces ended below fmax; steps: how many were made.
    """

    crystals: list[Crystal]
    energy: Float64[np.ndarray, " B"]
    converged: Bool[np.ndarray, " B"]
    steps: Int32[np.ndarray, " B"]
    problems: tuple[str | None, ...]


def relax(
    potential: Potential,
    crystals: Sequence[Crystal],
    *,
    fmax: float = 0.1,
    steps: int = 100,
    fix_symmetry: bool = False,
    fix_cell: bool = False,
) -> Relaxed:
    """Relax each crystal until all forces (and the cell's) are below `fmax` eV/Å, or for `steps` steps.

    fix_symmetry keeps the space group found with 0.01 Å. A crystal whose relaxation fails keeps its structure and gets
    NaN and an entry in `problems`; the others go on.
    """
    from ase.constraints import FixSymmetry
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    count = len(crystals)
    relaxed = list(crystals)
    energy, converged = np.full(count, np.nan), np.zeros(count, dtype=bool)
    made = np.zeros(count, dtype=np.int32)
    problems: list[str | None] = [None] * count
    judge = calculator(potential)
    for row, crystal in enumerate(crystals):
        atoms = to_atoms(crystal)
        atoms.calc = judge
        try:
            if fix_symmetry:
                atoms.set_constraint(FixSymmetry(atoms, symprec=0.01))
            target: Any = atoms if fix_cell else FrechetCellFilter(atoms)
            optimizer = FIRE(target, logfile=os.devnull, maxstep=LARGEST_STEP)
            converged[row] = bool(optimizer.run(fmax=fmax, steps=steps))
            made[row] = optimizer.nsteps
            energy[row] = float(atoms.get_potential_energy())
            relaxed[row] = from_atoms(atoms)
        except Exception as error:  # an ill crystal can fail anywhere in ASE, spglib or the model
            problems[row] = f"relaxation failed: {type(error).__name__}: {error}".splitlines()[0]
            energy[row], converged[row] = np.nan, False
    return Relaxed(relaxed, energy, converged, made, tuple(problems))
