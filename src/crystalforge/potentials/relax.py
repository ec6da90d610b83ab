"""Relaxation of positions and cell of many crystals at once, under any potential.

All crystals take their steps together: one batch of the potential serves those that are not done, and a crystal that
has come to rest leaves the batch and makes room for the next one. Each has an optimiser of its own, so none depends on
its company (but for the last bits, as every batch of a network does).

A crystal is relaxed in its primitive cell, where a face-centred one has a quarter of the atoms; its forces are the
same there, and it is given back in the cell it came in, atoms in their order.

The coordinates are the atoms' positions and the strain of the cell times a length, so that both have the same unit
and about the same stiffness. Steps are quasi-Newton ones (`bfgs`; a third of the force calls that FIRE needs) with a
bound on how far an atom may go in one; `fire` is FIRE (Bitzek et al., PRL 97, 170201 (2006)) with ASE's parameters.

Shapes: B crystals, n atoms of one of them, q = 3 n + 9 coordinates of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import ANY_ELEMENT, Potential, Prediction, unsuitable
from crystalforge.potentials.primitive import primitive_cell

Method = Literal["bfgs", "fire"]

LARGEST_STEP = 0.1
"""Å (and, for the cell, the like of it) that an atom may move in one step; half of ASE's default, since generated
crystals start with large forces."""

ABREAST = 64
"""Crystals that relax together; the potential cuts the batch by atoms itself."""

STIFFNESS = 10.0
"""eV/Å^2 that a bond is taken to have before anything is known of a crystal; ASE's 70 is that of a molecule."""

SYMPREC = 0.01
"""Å within which symmetry is looked for where it is to be kept."""


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
    method: Method = "bfgs",
    abreast: int = ABREAST,
) -> Relaxed:
    """Relax each crystal until all forces (and the cell's) are below `fmax` eV/Å, or for `steps` steps.

    fix_symmetry keeps the space group found with 0.01 Å. abreast: how many relax together; bounds the memory. A crystal
    whose relaxation fails keeps its structure and gets NaN and an entry in `problems`; the others go on. Raises what
    the potential raises (it has no forces, say).
    """
    count = len(crystals)
    relaxed = list(crystals)
    energy, converged = np.full(count, np.nan), np.zeros(count, dtype=bool)
    made = np.zeros(count, dtype=np.int32)
    problems: list[str | None] = [unsuitable(crystal, ANY_ELEMENT) for crystal in crystals]
    waiting = iter([row for row in range(count) if problems[row] is None])
    moving: list[_Moving] = []
    while True:
        moving += _start(waiting, abreast - len(moving), crystals, fix_symmetry, fix_cell, method, problems)
        if not moving:
            break
        answer = potential.predict([one.crystal for one in moving], forces=True, stress=True)
        assert answer.forces is not None
        assert answer.stress is not None
        left = []
        for place, one in enumerate(moving):
            problem = answer.problems[place]
            if problem is not None:
                problems[one.row] = f"relaxation failed: {problem}"
                continue
            forces = one.forces(answer, place)
            made[one.row] = one.steps
            converged[one.row] = one.largest(forces) < fmax
            if converged[one.row] or one.steps >= steps:
                energy[one.row] = answer.energy[place] * len(crystals[one.row]) / len(one.crystal)
                relaxed[one.row] = one.in_given_cell(crystals[one.row])
                continue
            try:
                one.step(answer.energy[place], forces)
            except (np.linalg.LinAlgError, FloatingPointError) as error:
                problems[one.row] = f"relaxation failed: {error}"
                continue
            if (ill := unsuitable(one.crystal, ANY_ELEMENT)) is not None:
                problems[one.row] = f"relaxation failed: {ill}"
                continue
            left.append(one)
        moving = left
    for row, problem in enumerate(problems):
        if problem is not None:
            converged[row] = False
    return Relaxed(relaxed, energy, converged, made, tuple(problems))


@dataclass(eq=False)
class _Moving:
    """One crystal on its way: its primitive cell, what keeps its symmetry, and its optimiser."""

    row: int
    crystal: Crystal
    start: Crystal
    optimiser: BFGS | FIRE
    keep: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None
    fix_cell: bool
    steps: int = 0

    @property
    def length(self) -> float:
        """Å by which strains are multiplied: a cell of n atoms is n times as stiff as a bond."""
        return float(np.sqrt(len(self.crystal)))

    def forces(self, answer: Prediction, place: int) -> Float64[np.ndarray, " q"]:
        """On the coordinates; eV/Å."""
        assert answer.forces is not None
        assert answer.stress is not None
        force, stress = answer.forces[place], (answer.stress[place] + answer.stress[place].T) / 2
        if self.keep is not None:
            force, stress = self.keep(force, stress)
        strain = np.zeros((3, 3)) if self.fix_cell else -stress * self.crystal.volume / self.length
        return np.concatenate([force.ravel(), strain.ravel()])

    def largest(self, forces: Float64[np.ndarray, " q"]) -> float:
        """The largest force as ASE's cell filters count it: per atom for the cell."""
        rows = forces.reshape(-1, 3).copy()
        rows[-3:] *= self.length / len(self.crystal)
        return float(np.linalg.norm(rows, axis=1).max())

    def step(self, energy: float, forces: Float64[np.ndarray, " q"]) -> None:
        """Move."""
        move = self.optimiser.step(energy, forces).reshape(-1, 3)
        crystal = self.crystal
        strain = (move[-3:] + move[-3:].T) / 2 / self.length
        frac = crystal.frac + move[:-3] @ np.linalg.inv(crystal.lattice)
        self.crystal = Crystal(crystal.lattice @ (np.eye(3) + strain), crystal.numbers, frac)
        self.steps += 1

    def in_given_cell(self, given: Crystal) -> Crystal:
        """The crystal as it is now in the cell that it was given in."""
        if len(given) == len(self.start):
            return self.crystal
        # Rows of `given` in units of the primitive cell are integers; so are the distances between an atom and its
        # image in that cell.
        repeats = np.rint(given.lattice @ np.linalg.inv(self.start.lattice))
        places = given.frac @ repeats
        difference = places[:, None] - self.start.frac
        difference -= np.rint(difference)
        distance = np.linalg.norm(difference @ self.start.lattice, axis=2)
        distance[given.numbers[:, None] != self.start.numbers] = np.inf
        origin = distance.argmin(axis=1)
        moved = places + (self.crystal.frac - self.start.frac)[origin]
        return Crystal(repeats @ self.crystal.lattice, given.numbers, moved @ np.linalg.inv(repeats))


def _start(
    waiting: Iterator[int],
    seats: int,
    crystals: Sequence[Crystal],
    fix_symmetry: bool,
    fix_cell: bool,
    method: Method,
    problems: list[str | None],
) -> list[_Moving]:
    found = []
    while len(found) < seats and (row := next(waiting, None)) is not None:
        cell = primitive_cell(crystals[row])
        keep = None
        if fix_symmetry:
            keep = _keeper(cell)
            if keep is None:
                problems[row] = "relaxation failed: no symmetry was found"
                continue
        optimiser = BFGS(3 * len(cell) + 9) if method == "bfgs" else FIRE(3 * len(cell) + 9)
        found.append(_Moving(row, cell, cell, optimiser, keep, fix_cell))
    return found


@dataclass(eq=False)
class BFGS:
    """Quasi-Newton steps with a model of the curvature that starts as STIFFNESS and learns from every step.

    The step is that of the model with its curvatures taken positive, shortened where an atom would go too far, as in
    ASE's BFGS. Where the energy rose by more than rounding, the model is forgotten.
    """

    size: int
    hessian: Float64[np.ndarray, "q q"] = field(init=False)

    def __post_init__(self) -> None:
        self.hessian = np.eye(self.size) * STIFFNESS
        self._before: tuple[float, np.ndarray, np.ndarray] | None = None

    def step(self, energy: float, forces: Float64[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
        """The displacement, Å."""
        if self._before is not None:
            lowest, last, move = self._before
            change = last - forces  # of the gradient
            bend = float(move @ change)
            pushed = self.hessian @ move
            if bend > 1e-8:
                self.hessian += np.outer(change, change) / bend - np.outer(pushed, pushed) / float(move @ pushed)
            energy = min(energy, lowest)
        curvature, modes = np.linalg.eigh(self.hessian)
        move = modes @ ((forces @ modes) / np.maximum(np.abs(curvature), 1.0))
        move = _shortened(move)
        self._before = (energy, forces, move)
        return move


@dataclass(eq=False)
class FIRE:
    """The fast inertial relaxation engine with the parameters of ASE's."""

    size: int
    dt: float = 0.1
    alpha: float = 0.1
    downhill: int = 0

    def __post_init__(self) -> None:
        self._velocity = np.zeros(self.size)

    def step(self, energy: float, forces: Float64[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
        """The displacement, Å."""
        del energy
        velocity = self._velocity
        power = float(forces @ velocity)
        if power > 0:
            speed = np.linalg.norm(velocity) / max(float(np.linalg.norm(forces)), 1e-12)
            velocity = (1 - self.alpha) * velocity + self.alpha * speed * forces
            if self.downhill > 5:
                self.dt, self.alpha = min(1.1 * self.dt, 1.0), 0.99 * self.alpha
            self.downhill += 1
        else:
            velocity = np.zeros(self.size)
            self.dt, self.alpha, self.downhill = 0.5 * self.dt, 0.1, 0
        self._velocity = velocity + self.dt * forces
        move = self.dt * self._velocity
        length = float(np.linalg.norm(move))
        return move * min(1.0, LARGEST_STEP / length) if length > 0 else move


def _shortened(move: Float64[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
    """The same direction, no row of it longer than LARGEST_STEP."""
    longest = float(np.linalg.norm(move.reshape(-1, 3), axis=1).max())
    return move * min(1.0, LARGEST_STEP / longest) if longest > 0 else move


def _keeper(
    crystal: Crystal,
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """A function that makes forces and stress as symmetric as the crystal is; None where no symmetry is found."""
    import spglib

    cell: Any = (crystal.lattice, crystal.frac, crystal.numbers)  # its types ask for lists, arrays serve
    found = spglib.get_symmetry(cell, symprec=SYMPREC)
    if found is None:
        return None
    to_cart, to_frac = crystal.lattice.T, np.linalg.inv(crystal.lattice.T)
    turns = to_cart @ found["rotations"] @ to_frac
    # Where each operation takes each atom.
    images = crystal.frac @ found["rotations"].transpose(0, 2, 1) + found["translations"][:, None]
    difference = images[:, :, None] - crystal.frac
    difference -= np.rint(difference)
    distance = np.linalg.norm(difference @ crystal.lattice, axis=3)
    distance[:, crystal.numbers[:, None] != crystal.numbers] = np.inf
    targets: Int64[np.ndarray, "g n"] = distance.argmin(axis=2)

    def keep(force: np.ndarray, stress: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        even = np.zeros_like(force)
        for turn, target in zip(turns, targets, strict=True):
            even[target] += force @ turn.T
        return even / len(turns), (turns @ stress @ turns.transpose(0, 2, 1)).mean(axis=0)

    return keep
