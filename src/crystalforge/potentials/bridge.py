"""To and from ASE: atoms, stresses, and any of our potentials as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Prediction

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""xx, yy, zz, yz, xz, xy: the order of ASE's six-vectors."""


def to_atoms(crystal: Crystal) -> Atoms:
    """As a periodic ASE object, fractional coordinates kept as they are."""
    from ase import Atoms

    return Atoms(numbers=crystal.numbers, scaled_positions=crystal.frac, cell=crystal.lattice, pbc=True)


def from_atoms(atoms: Any) -> Crystal:
    """From an ASE object; coordinates are not wrapped."""
    return Crystal.of(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions(wrap=False))


def full_to_voigt(stress: Float64[np.ndarray, "B 3 3"]) -> Float64[np.ndarray, "B 6"]:
    """Six-vectors of symmetric tensors (the two halves are averaged)."""
    symmetric = (stress + stress.transpose(0, 2, 1)) / 2
    return np.stack([symmetric[:, i, j] for i, j in VOIGT], axis=1)


def voigt_to_full(stress: Float64[np.ndarray, "B 6"]) -> Float64[np.ndarray, "B 3 3"]:
    """Symmetric tensors of six-vectors."""
    full = np.zeros((len(stress), 3, 3))
    for place, (i, j) in enumerate(VOIGT):
        full[:, i, j] = full[:, j, i] = stress[:, place]
    return full


@runtime_checkable
class Predicts(Protocol):
    """The part of `Potential` that a calculator needs."""

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        """See `Potential.predict`."""
        ...


def calculator(potential: Predicts) -> Calculator:
    """An ASE calculator (energy in eV, forces in eV/Å, stress in eV/Å^3) on top of a potential.

    It raises CalculatorError when the potential has no answer for the atoms.
    """
    from ase.calculators.calculator import Calculator, CalculatorError, all_changes

    class PotentialCalculator(Calculator):
        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own convention)

        def calculate(
            self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            answer = potential.predict([from_atoms(self.atoms)], forces=True, stress=True)
            if answer.problems[0] is not None:
                raise CalculatorError(answer.problems[0])
            assert answer.forces is not None
            assert answer.stress is not None
            self.results = {
                "energy": float(answer.energy[0]),
                "free_energy": float(answer.energy[0]),
                "forces": answer.forces[0],
                "stress": full_to_voigt(answer.stress)[0],
            }

    return PotentialCalculator()
