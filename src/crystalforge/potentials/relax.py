"""Relaxation of positions and cell with FIRE (Bitzek et al., PRL 97, 170201 (2006)) under any potential.

Many crystals relax in step: each has an ASE optimiser in a thread of its own, and whenever all of them wait for forces,
one batch of the potential serves them all. Any potential is batched that way, with ASE's own FIRE, cell filter and
fixed symmetry, and none needs a wrapper of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential, Prediction
from crystalforge.potentials.bridge import calculator, from_atoms, to_atoms

LARGEST_STEP = 0.1
"""Å (and, for the cell, the like of it) that FIRE may move in one step; half of ASE's default, since generated crystals
start with large forces."""

ABREAST = 64
"""Crystals that relax in step; the potential cuts the batch by atoms itself."""


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
    NaN and an entry in `problems`; the others go on. Raises what the potential raises (it has no forces, say).
    """
    count = len(crystals)
    relaxed = list(crystals)
    energy, converged = np.full(count, np.nan), np.zeros(count, dtype=bool)
    made = np.zeros(count, dtype=np.int32)
    problems: list[str | None] = [None] * count

    def one(row: int, seat: Any) -> None:
        from ase.constraints import FixSymmetry
        from ase.filters import FrechetCellFilter
        from ase.optimize import FIRE

        try:
            atoms = to_atoms(crystals[row])
            atoms.calc = calculator(seat)
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

    for begin in range(0, count, ABREAST):
        _InStep(potential, one).run(range(begin, min(begin + ABREAST, count)))
    return Relaxed(relaxed, energy, converged, made, tuple(problems))


class _InStep:
    """Runs `work(row, seat)` for many rows, each in a thread; what they ask of their seats is predicted together.

    A batch begins when every row that is not done waits, so what is in it depends on the crystals alone, never on
    timing. The model runs in the calling thread only.
    """

    def __init__(self, potential: Potential, work: Callable[[int, Any], None]) -> None:
        self._potential, self._work = potential, work
        self._asked: dict[int, Crystal] = {}
        self._answers: dict[int, Prediction] = {}
        self._at_work: set[int] = set()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def run(self, rows: Sequence[int]) -> None:
        """Until all rows are done. Raises what the potential itself raises, after the threads have ended."""
        self._at_work = set(rows)
        threads = [threading.Thread(target=self._one, args=(row,), name=f"relax-{row}", daemon=True) for row in rows]
        for thread in threads:
            thread.start()
        try:
            while self._round():
                pass
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            raise
        finally:
            for thread in threads:
                thread.join()

    def _round(self) -> bool:
        """Answer everybody once; False when nobody is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked.keys() == self._at_work)
            rows = sorted(self._asked)
            crystals = [self._asked[row] for row in rows]
        if not rows:
            return False
        answer = self._potential.predict(crystals, forces=True, stress=True)
        assert answer.forces is not None
        assert answer.stress is not None
        with self._changed:
            for place, row in enumerate(rows):
                part = slice(place, place + 1)
                self._answers[row] = Prediction(
                    answer.energy[part], [answer.forces[place]], answer.stress[part], answer.problems[part]
                )
            self._asked.clear()
            self._changed.notify_all()
        return True

    def _one(self, row: int) -> None:
        try:
            self._work(row, _Seat(self, row))
        finally:
            with self._changed:
                self._at_work.discard(row)
                self._changed.notify_all()

    def ask(self, row: int, crystal: Crystal) -> Prediction:
        """The prediction for one row's crystal, when all others have asked as well."""
        with self._changed:
            self._asked[row] = crystal
            self._changed.notify_all()
            self._changed.wait_for(lambda: row in self._answers or self._failure is not None)
            if self._failure is not None:
                raise RuntimeError("the relaxation was given up") from self._failure
            return self._answers.pop(row)


@dataclass(frozen=True)
class _Seat:
    """What a row's calculator takes for the potential."""

    table: _InStep
    row: int

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        (crystal,) = crystals
        return self.table.ask(self.row, crystal)
