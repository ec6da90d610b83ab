"""What any potential must satisfy, as plain functions: run them on your own adapter.

Each check raises AssertionError that states the numbers seen and allowed; `check_potential` runs all of them.

    from crystalforge.testing import check_potential
    check_potential(MyPotential())

A model may honestly lack a symmetry (Orb is not exactly invariant under rotation, direct force models are not
conservative): name the checks to leave out in `skip`, so that the exception is written down where the model is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential

ENERGY = 2e-5
"""eV/atom by which energies of one crystal in two descriptions may differ: single precision of a network that sums
tens of eV, with a margin of ten."""

FORCE = 2e-4
"""eV/Å likewise."""

STRESS = 2e-5
"""eV/Å^3 likewise (3 MPa)."""

DIFFERENCE = 5e-3
"""Relative error allowed between a derivative and its finite difference, plus `DIFFERENCE_FLOOR`. Single precision
leaves two to three digits of a difference quotient at the step used."""

DIFFERENCE_FLOOR = 1e-2
"""eV/Å (or eV per unit strain and atom) of absolute error of a difference quotient in single precision."""

STEP = 1e-2
"""Å (and strain/5) of the central difference: the best compromise of rounding and curvature in single precision."""


@dataclass(frozen=True)
class Tolerances:
    """How far a model may miss; see the constants of this module."""

    energy: float = ENERGY
    force: float = FORCE
    stress: float = STRESS
    difference: float = DIFFERENCE
    difference_floor: float = DIFFERENCE_FLOOR
    step: float = STEP


def example_crystals() -> list[Crystal]:
    """Small crystals off equilibrium (so that no force is zero): oxide, salt, metal; triclinic after rattling."""
    rng = np.random.default_rng(7)
    face_centred = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    plain = [
        Crystal.of(5.69 * face_centred, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Crystal.of(
            3.945 * np.eye(3),
            [38, 22, 8, 8, 8],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        Crystal.of(3.0 * np.diag([1, 1, 1.63]), [12, 12], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    ]
    rattled = []
    for crystal in plain:
        lattice = crystal.lattice @ (np.eye(3) + rng.normal(0, 0.02, (3, 3)))
        rattled.append(Crystal.of(lattice, crystal.numbers, crystal.frac + rng.normal(0, 0.015, crystal.frac.shape)))
    return rattled


def supercell(crystal: Crystal, repeats: Sequence[int] = (2, 1, 1)) -> Crystal:
    """The same crystal in a larger cell, the first copy's atoms first."""
    shifts = np.array(list(np.ndindex(*repeats)), dtype=np.float64)
    frac = (crystal.frac[None] + shifts[:, None]) / np.array(repeats)
    lattice = crystal.lattice * np.array(repeats)[:, None]
    return Crystal.of(lattice, np.tile(crystal.numbers, len(shifts)), frac.reshape(-1, 3))


def check_units(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """Energies are eV per cell (not per atom, not kJ/mol, not Hartree), finite, of the right shapes."""
    answer = potential.predict(crystals, forces=True, stress=True)
    assert answer.problems == (None,) * len(crystals), f"problems: {answer.problems}"
    assert answer.forces is not None
    assert answer.stress is not None
    assert answer.energy.shape == (len(crystals),)
    assert [force.shape for force in answer.forces] == [(len(crystal), 3) for crystal in crystals]
    assert answer.stress.shape == (len(crystals), 3, 3)
    per_atom = answer.energy / [len(crystal) for crystal in crystals]
    assert (np.abs(per_atom) < 30).all(), f"eV/atom beyond any solid: {per_atom}"
    pairs = potential.predict([crystals[0], supercell(crystals[0])]).energy
    assert _near(pairs[1], 2 * pairs[0], tolerances.energy * 2 * len(crystals[0])), (
        f"two cells have {pairs[1]:.6f} eV, one has {pairs[0]:.6f}: is the energy one per cell?"
    )


def check_permutation(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """The order of the atoms changes no energy and permutes the forces."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(crystal)) for crystal in crystals]
    shuffled = [
        Crystal.of(crystal.lattice, crystal.numbers[order], crystal.frac[order])
        for crystal, order in zip(crystals, orders, strict=True)
    ]
    _same(
        potential,
        crystals,
        shuffled,
        tolerances,
        "permutation",
        map_force=lambda row, force: force[orders[row]],
        map_stress=lambda row, stress: stress,
    )


def check_translation(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """Shifting all atoms, and moving single atoms by lattice vectors, changes nothing."""
    rng = np.random.default_rng(1)
    moved = [
        Crystal.of(
            crystal.lattice,
            crystal.numbers,
            crystal.frac + rng.uniform(0, 1, 3) + rng.integers(-2, 3, crystal.frac.shape),
        )
        for crystal in crystals
    ]
    _same(
        potential,
        crystals,
        moved,
        tolerances,
        "translation",
        map_force=lambda row, force: force,
        map_stress=lambda row, stress: stress,
    )


def check_rotation(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """A rotation changes no energy, rotates forces and stress."""
    rng = np.random.default_rng(2)
    rotations = []
    for _ in crystals:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        rotations.append(rotation * np.sign(np.linalg.det(rotation)))
    turned = [
        Crystal.of(crystal.lattice @ rotation.T, crystal.numbers, crystal.frac)
        for crystal, rotation in zip(crystals, rotations, strict=True)
    ]
    _same(
        potential,
        crystals,
        turned,
        tolerances,
        "rotation",
        map_force=lambda row, force: force @ rotations[row].T,
        map_stress=lambda row, stress: rotations[row] @ stress @ rotations[row].T,
    )


def check_supercell(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """Twice the cell has twice the energy, the same forces and the same stress."""
    doubled = [supercell(crystal) for crystal in crystals]
    _same(
        potential,
        crystals,
        doubled,
        tolerances,
        "supercell",
        factor=2,
        map_force=lambda row, force: np.tile(force, (2, 1)),
        map_stress=lambda row, stress: stress,
    )


def check_batch(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """A crystal's energy does not depend on its company, nor do forces and stress; a bad one harms nobody."""
    together = potential.predict(crystals, forces=True, stress=True)
    ill = Crystal.of(np.eye(3) * 4, [1], [[np.nan, 0, 0]])
    with_ill = potential.predict([*crystals[:1], ill, *crystals[1:]], forces=True, stress=True)
    assert with_ill.problems[1] is not None, "a NaN coordinate was not reported"
    assert np.isnan(with_ill.energy[1]), "a NaN coordinate got an energy"
    kept = np.delete(with_ill.energy, 1)
    for row, crystal in enumerate(crystals):
        alone = potential.predict([crystal], forces=True, stress=True)
        allowed = tolerances.energy * len(crystal)
        for energy, what in ((together.energy[row], "in a batch"), (kept[row], "beside an ill crystal")):
            assert _near(energy, alone.energy[0], allowed), (
                f"batch: crystal {row} has {energy:.6f} eV {what}, {alone.energy[0]:.6f} alone"
            )
        assert together.forces is not None
        assert alone.forces is not None
        _close("batch", row, "force", together.forces[row], alone.forces[0], tolerances.force)
        assert together.stress is not None
        assert alone.stress is not None
        _close("batch", row, "stress", together.stress[row], alone.stress[0], tolerances.stress)


def check_forces(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """Forces are minus the gradient of the energy, along a random direction, by central differences."""
    rng = np.random.default_rng(3)
    for row, crystal in enumerate(crystals):
        direction = rng.normal(size=(len(crystal), 3))
        direction /= np.linalg.norm(direction)
        to_frac = direction @ np.linalg.inv(crystal.lattice)
        ends = [
            Crystal.of(crystal.lattice, crystal.numbers, crystal.frac + sign * tolerances.step * to_frac)
            for sign in (1, -1)
        ]
        up, down = potential.predict(ends).energy
        difference = -(up - down) / (2 * tolerances.step)
        answer = potential.predict([crystal], forces=True)
        assert answer.forces is not None
        projected = float((answer.forces[0] * direction).sum())
        _derivative("forces", row, projected, difference, tolerances)


def check_stress(potential: Potential, crystals: Sequence[Crystal], tolerances: Tolerances) -> None:
    """Stress is the energy's derivative by a homogeneous strain over the volume (tension positive, eV/Å^3)."""
    rng = np.random.default_rng(4)
    step = tolerances.step / 5
    for row, crystal in enumerate(crystals):
        strain = rng.normal(size=(3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)
        ends = [
            Crystal.of(crystal.lattice @ (np.eye(3) + sign * step * strain), crystal.numbers, crystal.frac)
            for sign in (1, -1)
        ]
        up, down = potential.predict(ends).energy
        difference = (up - down) / (2 * step)
        answer = potential.predict([crystal], stress=True)
        assert answer.stress is not None
        projected = float((answer.stress[0] * strain).sum() * crystal.volume)
        # Per atom, so that the absolute allowance does not depend on the size of the cell.
        _derivative("stress", row, projected / len(crystal), difference / len(crystal), tolerances)


CHECKS: dict[str, Callable[[Potential, Sequence[Crystal], Tolerances], None]] = {
    "units": check_units,
    "permutation": check_permutation,
    "translation": check_translation,
    "rotation": check_rotation,
    "supercell": check_supercell,
    "batch": check_batch,
    "forces": check_forces,
    "stress": check_stress,
}


def check_potential(
    potential: Potential,
    crystals: Sequence[Crystal] | None = None,
    *,
    skip: Sequence[str] = (),
    tolerances: Tolerances | None = None,
) -> None:
    """Run all checks of `CHECKS` but those in `skip`; raises AssertionError at the first failure."""
    unknown = set(skip) - set(CHECKS)
    assert not unknown, f"no such checks: {', '.join(sorted(unknown))}"
    assert isinstance(potential, Potential), f"{type(potential).__name__} lacks a part of the Potential protocol"
    chosen = list(crystals) if crystals is not None else example_crystals()
    for name, check in CHECKS.items():
        if name not in skip:
            check(potential, chosen, tolerances or Tolerances())


def _same(
    potential: Potential,
    crystals: Sequence[Crystal],
    others: Sequence[Crystal],
    tolerances: Tolerances,
    what: str,
    *,
    map_force: Callable[[int, np.ndarray], np.ndarray],
    map_stress: Callable[[int, np.ndarray], np.ndarray],
    factor: int = 1,
) -> None:
    one = potential.predict(crystals, forces=True, stress=True)
    other = potential.predict(others, forces=True, stress=True)
    assert one.forces is not None
    assert other.forces is not None
    assert one.stress is not None
    assert other.stress is not None
    for row, crystal in enumerate(crystals):
        allowed = tolerances.energy * len(crystal) * factor
        assert _near(other.energy[row], factor * one.energy[row], allowed), (
            f"{what}: crystal {row} went from {factor * one.energy[row]:.6f} to {other.energy[row]:.6f} eV, "
            f"{allowed:.1e} are allowed"
        )
        _close(what, row, "force", other.forces[row], map_force(row, one.forces[row]), tolerances.force)
        _close(what, row, "stress", other.stress[row], map_stress(row, one.stress[row]), tolerances.stress)


def _near(seen: float, wanted: float, allowed: float) -> bool:
    return bool(abs(seen - wanted) <= allowed)  # False for NaN


def _close(what: str, row: int, kind: str, seen: np.ndarray, wanted: np.ndarray, allowed: float) -> None:
    error = float(np.abs(seen - wanted).max())
    assert error <= allowed, f"{what}: crystal {row}, {kind} is off by {error:.2e}, {allowed:.1e} is allowed"


def _derivative(what: str, row: int, seen: float, difference: float, tolerances: Tolerances) -> None:
    allowed = tolerances.difference * abs(difference) + tolerances.difference_floor
    assert _near(seen, difference, allowed), (
        f"{what}: crystal {row} has {seen:.5f}, the finite difference {difference:.5f}; {allowed:.1e} is allowed"
    )
