"""Shares of space groups that a model has learned."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from crystalforge.model.sampling.shares import log_ratio, tilt_of, tilted_shares

TILTS = arrays.arrays(np.float64, 230, elements=st.floats(-30, 30))


@given(tilt=TILTS, seed=st.integers(0, 99))
def test_shares_are_a_law_whose_odds_are_tilted(tilt, seed):
    weights = np.random.default_rng(seed).random(230) * (np.random.default_rng(seed + 1).random(230) > 0.5)
    shares = tilted_shares(weights, tilt)
    law = shares / shares.sum()
    possible = np.flatnonzero(law > 0)
    assert (law[weights == 0] == 0).all()
    found = log_ratio(weights, shares, possible + 1)
    np.testing.assert_allclose(found, np.log(law[possible]) - np.log(weights[possible] / weights.sum()), atol=1e-9)
    odds = found - tilt[possible]  # the same constant for all
    np.testing.assert_allclose(odds, odds[0], atol=1e-8)


def test_without_a_tilt_the_weights_stay_the_same_bits():
    weights = np.random.default_rng(0).random(230)
    assert tilted_shares(weights, tilt_of({})) is weights
    assert (log_ratio(weights, weights, np.arange(1, 231)) == 0).all()
