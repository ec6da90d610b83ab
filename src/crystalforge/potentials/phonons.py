"""Is a crystal at a minimum of its energy, or at a saddle? Harmonic frequencies from forces of displaced atoms.

Every atom of the primitive cell is moved by +-`step` in a supercell; central differences of the forces are the force
constants, and their lattice Fourier transform at the wave vectors that the supercell holds a whole number of times is
exact, so that no interpolation enters (direct method; Parlinski, Li & Kawazoe, Phys. Rev. Lett. 78, 4063 (1997)).

Shapes: n atoms of the cell, 3 n modes, R cells of the supercell, as many wave vectors. Units: Å, eV, THz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.crystal.geometry import cell_heights
from crystalforge.potentials.base import Potential

THZ = 15.633302
"""Frequency nu = omega / 2 pi in THz of 1 (eV / Å^2 / u)^(1/2), CODATA 2018."""


@dataclass(frozen=True, eq=False)
class Phonons:
    """frequencies: THz, ascending; an imaginary one is given as negative. q: wave vectors in reciprocal cell vectors;
    the first one is zero. residual: largest force on an atom before anything was moved, eV/Å."""

    q: Float64[np.ndarray, "R 3"]
    frequencies: Float64[np.ndarray, "R modes"]
    residual: float

    @property
    def lowest(self) -> float:
        """The lowest frequency but for the three translations at q = 0, THz; clearly negative: a saddle."""
        values = self.frequencies.copy()
        values[0, np.argsort(np.abs(values[0]))[:3]] = np.inf
        return float(values.min())


def repeats_for(crystal: Crystal, *, shortest: float = 8.0, most_atoms: int = 150) -> tuple[int, int, int]:
    """How often to repeat the cell so that its images are `shortest` Å apart, as far as `most_atoms` allow."""
    heights = cell_heights(crystal.lattice[None])[0]
    repeats = np.maximum(1, np.ceil(shortest / heights - 1e-9)).astype(int)
    while repeats.prod() * len(crystal) > most_atoms and repeats.max() > 1:
        repeats[np.argmax(repeats)] -= 1
    return int(repeats[0]), int(repeats[1]), int(repeats[2])


def phonons(
    potential: Potential, crystal: Crystal, repeats: Sequence[int] | None = None, *, step: float = 0.02
) -> Phonons:
    """Harmonic frequencies of a crystal at rest, at all wave vectors that fit into the supercell.

    repeats: cells along each axis, by default `repeats_for`. step: displacement in Å. The force constants obey the
    acoustic sum rule (a crystal moved as a whole feels nothing), to which numerical ones are made to conform.
    """
    counts = tuple(repeats) if repeats is not None else repeats_for(crystal)
    cells = np.array(list(product(*(range(count) for count in counts))))
    n, size = len(crystal), np.array(counts)
    frac = ((crystal.frac[None] + cells[:, None]) / size).reshape(-1, 3)
    lattice, numbers = crystal.lattice * size[:, None], np.tile(crystal.numbers, len(cells))
    inverse = np.linalg.inv(lattice)
    moved = []
    for atom, axis, sign in product(range(n), range(3), (1, -1)):
        place = frac.copy()
        place[atom] += sign * step * inverse[axis]
        moved.append(Crystal.of(lattice, numbers, place))
    at_rest = _forces(potential, [Crystal.of(lattice, numbers, frac)])[0]
    forces = np.stack(_forces(potential, moved)).reshape(n, 3, 2, len(cells), n, 3)
    constants = (forces[:, :, 1] - forces[:, :, 0]) / (2 * step)  # [i, a, R, j, b], eV/Å^2
    for atom in range(n):
        constants[atom, :, 0, atom] -= constants[atom].sum(axis=(1, 2))
    mass = np.sqrt(_masses(crystal))
    q = cells / size
    phase = np.exp(2j * np.pi * (q @ cells.T))
    matrix = np.einsum("iarjb,qr->qiajb", constants, phase) / mass[:, None, None, None] / mass[:, None]
    matrix = matrix.reshape(len(q), 3 * n, 3 * n)
    square = np.linalg.eigvalsh((matrix + matrix.conj().swapaxes(1, 2)) / 2)
    return Phonons(q, np.sign(square) * np.sqrt(np.abs(square)) * THZ, float(np.abs(at_rest).max()))


def _forces(potential: Potential, crystals: Sequence[Crystal]) -> list[np.ndarray]:
    found = potential.predict(crystals, forces=True)
    problem = next((text for text in found.problems if text is not None), None)
    assert problem is None, f"{potential.name} cannot judge the supercell: {problem}"
    assert found.forces is not None, f"{potential.name} gives no forces"
    return [np.asarray(force) for force in found.forces]


def _masses(crystal: Crystal) -> np.ndarray:
    from pymatgen.core.periodic_table import Element

    return np.array([float(Element.from_Z(int(z)).atomic_mass) for z in crystal.numbers])
