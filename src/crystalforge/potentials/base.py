"""What predicts an energy: the protocol, its answer, and the rules that keep one bad crystal from spoiling a
batch.

Shapes: B crystals, n atoms of one of them. Units: eV, eV/Å, eV/Å^3 (tension positive, as in ASE).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.crystal.geometry import cell_heights
from crystalforge.potentials.primitive import primitive_cell

Scale = Literal["mp2020", "pbe", "r2scan", "formation"]
"""What an energy is measured against. An energy and a hull may be compared only when their scales are equal.

mp2020: DFT total energies with the Materials Project 2020 corrections; pbe: PBE(+U) total energies before the
corrections; r2scan: r2SCAN total energies; formation: formation energies (elements = 0).
"""


@dataclass(frozen=True, eq=False)
class Prediction:
    """One row per crystal, in the order given.

    energy: eV per cell, NaN where the model could not answer; forces: eV/Å per atom; stress: eV/Å^3;
    problems: why there is no answer, None where there is one.
    """

    energy: Float64[np.ndarray, " B"]
    forces: list[Float64[np.ndarray, "_ 3"]] | None = None
    stress: Float64[np.ndarray, "B 3 3"] | None = None
    problems: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.problems:
            object.__setattr__(self, "problems", (None,) * len(self.energy))
        assert len(self.problems) == len(self.energy)

    def __len__(self) -> int:
        return len(self.energy)


@runtime_checkable
class Potential(Protocol):
    """Predicts energies of crystals.

    `predict` never raises because of a crystal: an unknown element, a NaN or an exception inside the model
    concerns that crystal alone, gives NaN and an entry in `problems`.
    """

    @property
    def name(self) -> str:
        """For people: `chgnet-0.3.0`."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and of whatever else determines the answer."""
        ...

    @property
    def elements(self) -> frozenset[int]:
        """Atomic numbers that the model was trained on."""
        ...

    @property
    def scale(self) -> Scale:
        """What its energies are measured against."""
        ...

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        """Energies [B] in eV per cell and, where asked for, forces and stresses."""
        ...


Batch = Callable[[Sequence[Crystal]], Prediction]


def atom_chunks(crystals: Sequence[Crystal], max_atoms: int) -> Iterator[slice]:
    """Consecutive slices of at most `max_atoms` atoms (a larger crystal makes a slice of its own).

    Cost and memory go with atoms, not with crystals: batches of equal atom count keep both steady.
    """
    start = atoms = 0
    for index, crystal in enumerate(crystals):
        if index > start and atoms + len(crystal) > max_atoms:
            yield slice(start, index)
            start, atoms = index, 0
        atoms += len(crystal)
    if start < len(crystals):
        yield slice(start, len(crystals))


def unsuitable(crystal: Crystal, elements: frozenset[int]) -> str | None:
    """Why a model must not see this crystal, or None. Catches what would raise, hang or spoil a whole batch."""
    if not len(crystal):
        return "no atoms"
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac).all()):
        return "lattice or coordinates are not finite"
    volume = crystal.volume
    # A flat cell makes neighbour lists explode: each cell height must be a fair part of an Å.
    heights = cell_heights(crystal.lattice[None])[0] if volume > 0 else np.zeros(3)
    if volume <= 0 or heights.min() < SMALLEST_HEIGHT:
        return f"flat cell: volume {volume:.3g} Å^3, smallest height {heights.min():.3g} Å"
    unknown = sorted(set(crystal.numbers.tolist()) - elements)
    if unknown:
        return f"unknown elements Z = {', '.join(map(str, unknown))}"
    return None


SMALLEST_HEIGHT = 0.3
"""Å between opposite faces of a cell. Real primitive cells have more than 1.5 Å; below this a neighbour list
of 6 Å needs more than 40 images per direction.
"""


def predict_isolated(
    crystals: Sequence[Crystal],
    evaluate: Batch,
    *,
    elements: frozenset[int],
    max_atoms: int,
    forces: bool,
    stress: bool,
) -> Prediction:
    """Run `evaluate` over chunks by atoms so that one failing crystal costs nobody else the answer.

    Unsuitable crystals are set aside first. When a chunk raises it is halved until the guilty crystal is
    alone; that one gets NaN and the exception's text. Numbers that are not finite become NaN as well.
    """
    energy = np.full(len(crystals), np.nan)
    all_forces = [np.full((len(crystal), 3), np.nan) for crystal in crystals]
    all_stress = np.full((len(crystals), 3, 3), np.nan)
    problems: list[str | None] = [unsuitable(crystal, elements) for crystal in crystals]
    good = [index for index, problem in enumerate(problems) if problem is None]

    def run(rows: list[int]) -> None:
        try:
            part = evaluate([crystals[row] for row in rows])
        except Exception as error:
            if len(rows) > 1:
                run(rows[: len(rows) // 2])
                run(rows[len(rows) // 2 :])
                return
            problems[rows[0]] = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        assert len(part) == len(rows)
        for place, row in enumerate(rows):
            problem, values = part.problems[place], [part.energy[place]]
            if forces and part.forces is not None:
                all_forces[row] = part.forces[place]
                values.append(part.forces[place].sum())
            if stress and part.stress is not None:
                all_stress[row] = part.stress[place]
                values.append(part.stress[place].sum())
            if problem is None and not np.isfinite(values).all():
                problem = "the model's answer is not finite"
            problems[row] = problem
            energy[row] = part.energy[place] if problem is None else np.nan

    chosen = [crystals[row] for row in good]
    for chunk in atom_chunks(chosen, max_atoms):
        run(good[chunk])
    return Prediction(energy, all_forces if forces else None, all_stress if stress else None, tuple(problems))


class BatchedPotential(ABC):
    """The part of `Potential` that all adapters share: a model's adapter only says how one batch is evaluated.

    max_atoms: atoms in one batch. primitive: energies are asked of primitive cells and scaled up, which saves time and
    changes nothing where the model does not care how often a cell is repeated.
    """

    elements: frozenset[int]
    primitive: bool = True

    def __init__(self, max_atoms: int) -> None:
        self._max_atoms = max_atoms

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        """See `Potential.predict`."""
        cells = crystals
        if self.primitive and not (forces or stress):
            cells = [cell_to_judge(crystal) for crystal in crystals]
        answer = predict_isolated(
            cells,
            lambda chunk: self._evaluate(chunk, forces, stress),
            elements=self.elements,
            max_atoms=self._max_atoms,
            forces=forces,
            stress=stress,
        )
        copies = np.array([len(whole) / (len(cell) or 1) for whole, cell in zip(crystals, cells, strict=True)])
        return replace(answer, energy=answer.energy * copies)

    @abstractmethod
    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        """Answer for one batch of suitable crystals; may raise, may give NaN."""


def cell_to_judge(crystal: Crystal) -> Crystal:
    """The primitive cell of a crystal that may be anything; itself where no model could judge it anyway."""
    return crystal if unsuitable(crystal, ANY_ELEMENT) else primitive_cell(crystal)


ANY_ELEMENT = frozenset(range(1, 119))


@dataclass(frozen=True, eq=False)
class Values:
    """Answers of a property model: values [B, K] in the model's units, NaN where it could not answer."""

    values: Float64[np.ndarray, "B K"]
    problems: tuple[str | None, ...]


@runtime_checkable
class PropertyModel(Protocol):
    """Predicts K numbers per crystal; keeps the promises of `Potential` about bad crystals."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and of whatever else determines the answer."""
        ...

    @property
    def elements(self) -> frozenset[int]:
        """Atomic numbers that the model was trained on."""
        ...

    def predict_values(self, crystals: Sequence[Crystal]) -> Values:
        """Values [B, K]."""
        ...
