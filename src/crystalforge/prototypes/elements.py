"""Reference energies of the elements from one potential: the corners of the embedded data set's hull.

Each element's lowest of all elemental structure types of the AFLOW library and of fcc, bcc, hcp and diamond, every
one at the volume that the potential prefers; elements that form molecules or open structures are then relaxed in full.
Dimer crystals of H, N, O, F, Cl, Br, I start with the molecules' measured bond lengths.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.data.substitution import MAX_Z
from crystalforge.potentials.base import Potential
from crystalforge.prototypes.volume import at_best_volume

BOND = {1: 0.741, 7: 1.098, 8: 1.208, 9: 1.412, 17: 1.988, 35: 2.281, 53: 2.666}  # Å, gas phase (CRC Handbook)
VOLUME = {1: 11.4, 7: 22.5, 8: 17.4, 9: 16.0, 17: 28.8, 35: 32.6, 53: 42.7}  # Å^3/atom of the molecular solids
DIMER_TYPES = ("A_cP8_205_c", "A_tP4_136_f", "A_mC4_12_i", "A_hR2_166_c", "A_oC8_64_f")
RELAXED = frozenset((*BOND, 5, 6, 15, 16, 31, 33, 34, 49, 50, 51, 52, 80, 83, 25, 92, 93, 94))
MAX_ATOMS = 36  # alpha-sulphur has 32
UNKNOWN = frozenset(range(84, 89))  # Po, At, Rn, Fr, Ra: the potential has not seen the elements
FINALISTS = 3  # structure types whose volume is refined, per element
TRIAL_SCALES = (0.8, 1.0, 1.2)  # of the tabulated atomic volume, to rank the types


def element_references(potential: Potential) -> dict[int, tuple[str, Crystal, float]]:
    """For each Z <= 94 with a known atomic volume: (structure type, crystal, energy in eV/atom)."""
    found = {}
    for z in range(1, MAX_Z + 1):
        volume = _atomic_volume(z)
        if volume is not None and z not in UNKNOWN:
            found[z] = _reference(z, volume, potential)
    return found


def _reference(z: int, volume: float, potential: Potential) -> tuple[str, Crystal, float]:
    labels, trials = [], []
    for label, unit in _types():
        for scale in TRIAL_SCALES:
            labels.append(label)
            trials.append(_scaled(unit, z, scale * volume))
    if z in BOND:
        types = dict(_types())
        for label in DIMER_TYPES:
            labels.append(f"{label}, dimers")
            trials.append(_dimers(_scaled(types[label], z, VOLUME[z]), BOND[z]))
    energy = potential.predict(trials).energy / np.array([len(trial) for trial in trials])
    order = np.argsort(np.where(np.isfinite(energy), energy, np.inf), kind="stable")
    finalists: dict[str, Crystal] = {}
    for index in order:
        if len(finalists) < FINALISTS or (z in BOND and labels[index].endswith("dimers")):
            finalists.setdefault(labels[index], trials[index])
    best: tuple[str, Crystal, float] | None = None
    molecular = [label for label in finalists if label.endswith("dimers")]
    rigid = [label for label in finalists if label not in molecular]
    crystals, energies = at_best_volume([finalists[label] for label in rigid], potential)
    candidates = [*zip(rigid, crystals, energies.tolist(), strict=True)]
    candidates += [(label, finalists[label], float("inf")) for label in molecular]
    if z in RELAXED:
        candidates += [(label, *_relaxed(crystal, potential)) for label, crystal, _ in candidates]
    for candidate in candidates:
        if np.isfinite(candidate[2]) and (best is None or candidate[2] < best[2]):
            best = candidate
    assert best is not None, f"no structure of Z = {z} has an energy"
    return best


@cache
def _types() -> tuple[tuple[str, Crystal], ...]:
    """Elemental structure types: the library's and the four that every metal is compared with."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    fcc = Crystal.of([[0, 1, 1], [1, 0, 1], [1, 1, 0]], [1], [[0, 0, 0]])
    bcc = Crystal.of([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], [1], [[0, 0, 0]])
    diamond = Crystal.of(fcc.lattice, [1, 1], [[0, 0, 0], [0.25, 0.25, 0.25]])
    hexagonal = [[1, 0, 0], [-0.5, np.sqrt(0.75), 0], [0, 0, np.sqrt(8 / 3)]]
    hcp = Crystal.of(hexagonal, [1, 1], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])
    types = {"fcc": fcc, "bcc": bcc, "hcp": hcp, "diamond": diamond}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.get_primitive_structure()
        if len(structure.composition) == 1 and len(structure) <= MAX_ATOMS:
            types.setdefault(entry["tags"]["aflow"], Crystal.from_structure(structure))
    return tuple(types.items())


def _scaled(unit: Crystal, z: int, volume: float) -> Crystal:
    """The structure type with element z at `volume` Å^3 per atom."""
    factor = (volume * len(unit) / unit.volume) ** (1 / 3)
    return Crystal.of(unit.lattice * factor, np.full(len(unit), z), unit.frac)


def _dimers(crystal: Crystal, bond: float) -> Crystal:
    """Move each atom along the line to its nearest neighbour until the two are `bond` Å apart, centre kept."""
    structure = crystal.to_structure()
    moved = structure.cart_coords.copy()
    for index, site in enumerate(structure):
        near = min(structure.get_neighbors(site, 1.2 * crystal.volume ** (1 / 3)), key=lambda other: other.nn_distance)
        line = near.coords - site.coords
        moved[index] = site.coords + line * 0.5 * (1 - bond / near.nn_distance)
    return Crystal.of(crystal.lattice, crystal.numbers, moved @ np.linalg.inv(crystal.lattice))


def _relaxed(crystal: Crystal, potential: Potential, *, steps: int = 200) -> tuple[Crystal, float]:
    """Positions and cell relaxed by steepest descent with an adaptive step; energy in eV/atom.

    Few atoms and a starting point near the minimum: the simplest method that cannot diverge is enough here.
    """
    present, step, energy = crystal, 0.02, np.inf
    answer = potential.predict([present], forces=True, stress=True)
    if answer.problems[0] is not None:
        return crystal, float("inf")
    energy = float(answer.energy[0])
    for _ in range(steps):
        assert answer.forces is not None
        assert answer.stress is not None
        strain = -answer.stress[0] * present.volume / len(present)
        largest = max(float(np.abs(answer.forces[0]).max()), float(np.abs(strain).max()))
        if largest < 0.01:  # eV/Å, eV
            break
        shift = step * answer.forces[0] @ np.linalg.inv(present.lattice)
        lattice = present.lattice @ (np.eye(3) + np.clip(0.3 * step * strain, -0.02, 0.02))
        trial = Crystal.of(lattice, present.numbers, present.frac + np.clip(shift, -0.02, 0.02))
        reply = potential.predict([trial], forces=True, stress=True)
        if reply.problems[0] is None and reply.energy[0] < energy:
            present, answer, energy, step = trial, reply, float(reply.energy[0]), min(step * 1.3, 0.3)
        else:
            step *= 0.4
            if step < 1e-4:
                break
    return present, energy / len(present)


def _atomic_volume(z: int) -> float | None:
    """Å^3 per atom of the solid or liquid, from the molar volume; None where no one has measured it."""
    from pymatgen.core import Element

    if z in VOLUME:
        return VOLUME[z]
    molar = Element.from_Z(z).molar_volume
    return None if molar is None or not molar > 0 else float(molar) / 0.602214
