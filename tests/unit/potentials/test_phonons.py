"""Frequencies against the closed form of a crystal of springs, and a real potential on rock salt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.potentials import load
from crystalforge.potentials.base import Potential, Prediction
from crystalforge.potentials.config import CHGNetConfig
from crystalforge.potentials.phonons import THZ, phonons, repeats_for
from crystalforge.rewards.golden import golden_crystals

A, MASS = 3.0, 63.546  # Å; copper, u


@dataclass
class Springs:
    """Atoms on a simple cubic lattice, each tied to its six neighbours: E = k/2 sum |u_i - u_j|^2, exactly harmonic."""

    stiffness: float
    name = "springs"
    digest = "springs"
    elements = frozenset(range(1, 119))
    scale = "pbe"

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        found = []
        for crystal in crystals:
            size = np.rint(np.diag(crystal.lattice) / A).astype(int)
            place = crystal.frac * size
            u = A * (place - np.rint(place))
            site = {tuple(row): k for k, row in enumerate((np.rint(place).astype(int) % size).tolist())}
            force = np.zeros_like(u)
            for row, k in site.items():
                for axis, sign in product(range(3), (1, -1)):
                    other = np.array(row)
                    other[axis] = (other[axis] + sign) % size[axis]
                    force[k] -= self.stiffness * (u[k] - u[site[tuple(other.tolist())]])
            found.append(force)
        return Prediction(np.zeros(len(crystals)), forces=found)


COPPER = Crystal.of(A * np.eye(3), [29], [[0.0, 0.0, 0.0]])


def test_a_crystal_of_springs_has_its_closed_form_at_every_wave_vector() -> None:
    springs = Springs(1.7)
    assert isinstance(springs, Potential)
    found = phonons(springs, COPPER, (2, 3, 4))
    expected = THZ * np.sqrt(2 * 1.7 / MASS * (1 - np.cos(2 * np.pi * found.q)).sum(axis=1))
    # 1e-5 THz: the square root at q = 0 turns rounding of 1e-12 into 1e-6
    np.testing.assert_allclose(found.frequencies, np.repeat(expected[:, None], 3, axis=1), atol=1e-5)
    assert len(found.q) == 24
    assert found.residual == 0.0
    assert found.lowest == pytest.approx(expected[1:].min(), abs=1e-5)


def test_a_saddle_shows_as_a_negative_frequency() -> None:
    assert phonons(Springs(-0.4), COPPER, (2, 2, 2)).lowest == pytest.approx(-THZ * np.sqrt(12 * 0.4 / MASS), abs=1e-5)


def test_the_supercell_grows_to_the_length_asked_for_and_no_further_than_allowed() -> None:
    flat = Crystal.of(np.diag([3.0, 5.0, 12.0]), [29, 29], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert repeats_for(flat) == (3, 2, 1)
    assert repeats_for(flat, most_atoms=9) == (2, 2, 1)
    assert repeats_for(flat, most_atoms=1) == (1, 1, 1)


def test_rock_salt_is_a_minimum_and_its_optical_modes_are_where_they_belong() -> None:
    salt = dict(golden_crystals())["NaCl"]
    cell = Crystal.of(salt.lattice, salt.numbers, salt.frac)
    found = phonons(load(CHGNetConfig()), cell, (1, 1, 1) if len(cell) == 8 else (2, 2, 2))
    assert found.lowest > 0.5
    assert 3.0 < found.frequencies.max() < 9.0  # measured: 5 (TO) to 8 (LO) THz
