"""The volume search against potentials whose minimum is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Prediction
from crystalforge.prototypes.volume import SAME_VOLUME, at_best_volume
from tests.unit.data.conftest import rock_salt


class Murnaghan:
    """E = B (x^2 + s x^3), x = ln(V / V0), per atom: stiff on one side as crystals are. NaN where told."""

    name, digest, scale, elements = "murnaghan", "0", "mp2020", frozenset(range(1, 95))

    def __init__(self, volume: float, skew: float = -0.5, *, refused: int = 0) -> None:
        self.volume, self.skew, self.refused, self.asked = volume, skew, refused, 0

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        self.asked += len(crystals)
        x = np.log([crystal.volume / len(crystal) / self.volume for crystal in crystals])
        energy = np.array([len(crystal) for crystal in crystals]) * 5 * (x**2 + self.skew * x**3)
        refused = np.array([self.refused in crystal.numbers for crystal in crystals])
        return Prediction(np.where(refused, np.nan, energy))


@pytest.mark.parametrize("start", [0.6, 0.85, 1.0, 1.1, 1.5])
def test_the_minimum_is_found(start):
    salt = rock_salt()
    potential = Murnaghan(salt.volume / 2 / start)
    (best,), energy = at_best_volume([salt], potential)
    assert np.log(best.volume / 2 / potential.volume) == pytest.approx(0, abs=1.5 * SAME_VOLUME)
    assert energy[0] == pytest.approx(0, abs=5 * (1.5 * SAME_VOLUME) ** 2)
    np.testing.assert_array_equal(best.frac, salt.frac)
    # The energy belongs to the structure that is returned, not to a neighbour of it.
    assert potential.predict([best]).energy[0] / 2 == pytest.approx(energy[0], abs=1e-12)


def test_crystals_do_not_influence_each_other():
    crystals = [rock_salt(), rock_salt(19, 35, 7.5), rock_salt(12, 8, 4.0)]
    potential = Murnaghan(20.0)
    together, energies = at_best_volume(crystals, potential)
    for crystal, found, energy in zip(crystals, together, energies, strict=True):
        (alone,), (value,) = at_best_volume([crystal], potential)
        np.testing.assert_array_equal(alone.lattice, found.lattice)
        assert value == energy


def test_a_crystal_without_energy():
    crystals = [rock_salt(), rock_salt(92, 8)]
    found, energy = at_best_volume(crystals, Murnaghan(20.0, refused=92))
    assert np.isfinite(energy).tolist() == [True, False]
    assert found[1].volume == pytest.approx(crystals[1].volume)
