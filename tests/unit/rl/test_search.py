"""Searching without learning: budgets are kept, and MCMC and resampling agree on the distribution they target."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import wyckoff as symmetry
from crystalforge.model.sampling.sampler import sample
from crystalforge.rl import journal
from crystalforge.rl.search import MOVES, SearchConfig, best, search, step_tokens, tilted_weights
from crystalforge.rl.testing import ElementReward

# Two Monte-Carlo estimates of a mean reward of spread 0.35, the worse one from 150 chains: 3.5 sigma.
AGREEMENT = 0.1
BROAD = {"keep": 10, "batch_size": 50}


def test_best_of_n_keeps_the_best_and_spends_no_more(tmp_path, base, cubic, oxide_reward):
    result = search(SearchConfig(scored=120, **BROAD), base, oxide_reward, cubic, tmp_path, seed=0)
    assert oxide_reward.scored == result.scored == 120
    everything = np.concatenate([s.scores.values for _, s in journal.steps(tmp_path / "samples")])
    np.testing.assert_array_equal(result.picked.scores.values, np.sort(everything)[::-1][:10])
    again = search(SearchConfig(scored=120, **BROAD), base, oxide_reward, cubic, tmp_path, seed=0)
    assert oxide_reward.scored == 120, "a finished search scores nothing again"
    np.testing.assert_array_equal(again.picked.index, result.picked.index)
    with pytest.raises(InputError, match=r"config\.scored = 120 .* 130"):
        search(SearchConfig(scored=130, **BROAD), base, oxide_reward, cubic, tmp_path, seed=0)


def test_mcmc_and_importance_resampling_find_the_same_distribution(tmp_path, base, cubic, oxide_reward):
    tau = 0.5
    resample = SearchConfig(method="resample", scored=1500, batch_size=500, keep=500, tau=tau)
    by_weights = search(resample, base, oxide_reward, cubic, tmp_path / "weights", seed=1)
    chains = SearchConfig(method="mcmc", scored=150 * 30, batch_size=150, tau=tau, fresh=0.7)
    by_chains = search(chains, base, oxide_reward, cubic, tmp_path / "chains", seed=2)
    assert oxide_reward.scored == 1500 + 4500
    assert by_weights.metrics["effective_samples"] > 250
    pool = np.concatenate([s.scores.values for _, s in journal.steps(tmp_path / "weights" / "samples")])
    expected = float((tilted_weights(pool, tau) * pool).sum())
    assert by_chains.metrics["reward/mean"] == pytest.approx(expected, abs=AGREEMENT)
    assert by_weights.metrics["reward/mean"] == pytest.approx(expected, abs=AGREEMENT)
    assert expected > pool.mean() + AGREEMENT  # the agreement is not that of two untouched bases
    assert all(by_chains.metrics[f"acceptance/{move}"] > 0.02 for move in MOVES)


def test_small_steps_keep_crystals_on_their_positions(tiny_model):
    tokens = sample(tiny_model, np.repeat([12, 62, 160, 225], 25), seed=4).tokens
    rng = np.random.default_rng(0)
    moved = step_tokens(tokens, rng.integers(0, 4, len(tokens)), rng, SearchConfig())
    assert (moved.wyckoff == tokens.wyckoff).all()
    assert (moved.coords != tokens.coords).any()
    assert (moved.element != tokens.element).any()
    assert (moved.lattice != tokens.lattice).any()
    representative = symmetry.representatives()[tokens.spacegroup[:, None] - 1, tokens.wyckoff]
    on_position = np.einsum("bsij,bsj->bsi", representative[..., :3], moved.coords) + representative[..., 3]
    off = np.abs(on_position - moved.coords)[tokens.is_site]
    assert np.minimum(off % 1, 1 - off % 1).max() < 1e-6  # drawn in float32
    cubic_rows = tokens.spacegroup == 225
    assert np.ptp(moved.lattice[cubic_rows, :3], axis=1).max() == 0


def test_the_best_of_a_run_are_distinct_and_judged(tmp_path, base, cubic):
    reward = ElementReward({8: 1.0})
    search(SearchConfig(scored=100, **BROAD), base, reward, cubic, tmp_path, seed=0)
    found = best(tmp_path / "samples", 20)
    assert len(found) == 20
    assert (np.diff(found.scores.values) <= 0).all()
    assert journal.unique_share(found.tokens) == 1.0
