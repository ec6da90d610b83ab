"""The probability of a space group under demands: against counting, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Element

from crystalforge.common.errors import InputError
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.sampling.groups import LEAST, Pilot, pilot, spacegroup_law
from crystalforge.model.sampling.sampler import sample

GROUPS = np.array([2, 62, 225])
SHARES = np.zeros(230)
SHARES[GROUPS - 1] = [0.5, 0.2, 0.3]


@pytest.mark.parametrize("layout", ["tokens", "sites"])
def test_it_is_the_share_times_what_the_model_gives_to_the_demands(spread_model, layout):
    model = spread_model(layout=layout)
    # Elements enter as well as letters: every second one, on one or two sites.
    demands = Constraints(max_sites=2, elements=[Element.from_Z(z).symbol for z in range(1, 119, 2)])
    allowed = demands.allowed_elements()
    met = []
    for group in GROUPS.tolist():
        free = sample(model, np.full(700, group), seed=1).tokens
        elements = np.where(free.element > 0, allowed[free.element], True).all(axis=1)
        met.append(((free.n_sites <= 2) & elements).mean())
    counted = SHARES[GROUPS - 1] * met
    counted /= counted.sum()
    found = pilot(model, SHARES, demands, seed=0, draws=500)
    assert np.flatnonzero(found.probability).tolist() == (GROUPS - 1).tolist()
    assert np.abs(counted - SHARES[GROUPS - 1]).max() > 0.1, "the demands must tell groups apart"
    error = counted / np.sqrt(700 * np.array(met))  # of counting
    assert (np.abs(found.probability[GROUPS - 1] - counted) < 4 * error).all()
    assert 20 < found.effective < len(found.spacegroup)


def test_what_excludes_nothing_changes_nothing(spread_model):
    model = spread_model()
    found = pilot(model, SHARES, Constraints(max_sites=20), seed=0, draws=60)
    np.testing.assert_allclose(found.probability, SHARES)
    assert len(found.spacegroup) == 60 + 3 * LEAST
    assert found.effective == pytest.approx(len(found.spacegroup), rel=0.1)
    assert spacegroup_law(model, SHARES, None, seed=0) is SHARES


def test_groups_that_cannot_meet_the_demands_get_nothing(spread_model):
    model = spread_model()
    demands = Constraints(composition="NaCl", max_atoms=2)  # 62 has no orbit of one atom
    found = pilot(model, SHARES, demands, seed=0, draws=20)
    assert not found.probability[61]
    assert found.probability[1] > 0
    only = np.zeros(230)
    only[61] = 1
    with pytest.raises(InputError, match="no space group of the training set"):
        pilot(model, only, demands, seed=0)


def test_a_pilot_that_is_worth_little_excludes_nothing():
    groups = np.repeat(GROUPS, 50)
    weight = np.full(150, -40.0)
    weight[0] = 0.0  # all probability in one draw
    found = Pilot(groups, weight, SHARES)
    assert found.effective == pytest.approx(1)
    assert found.probability[1] == pytest.approx(1)
    np.testing.assert_allclose(found.law[GROUPS - 1], 0.2 * np.array([1, 0, 0]) + 0.8 * np.array([0.5, 0.2, 0.3]))
    assert Pilot(groups, np.zeros(150), SHARES).law == pytest.approx(SHARES)
