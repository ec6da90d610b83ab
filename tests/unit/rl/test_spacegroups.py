"""Learning in which shares to ask for space groups: the closed form against a search, and the memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from crystalforge.rl import losses
from crystalforge.rl.spacegroups import PRIOR, SpacegroupShares

TAU = 0.1


def base_law() -> np.ndarray:
    weights = np.zeros(230)
    weights[[1, 61, 224]] = [0.5, 0.3, 0.2]
    return weights


def objective(shares: np.ndarray, weights: np.ndarray, worth: np.ndarray) -> float:
    some = shares > 0
    return float((shares * worth)[some].sum() - TAU * (shares[some] * np.log(shares[some] / weights[some])).sum())


def test_the_whole_way_leads_to_the_best_shares_for_the_policy():
    weights, groups = base_law(), np.array([2, 62, 225])
    shares = SpacegroupShares(weights)
    true = np.array([-0.5, -0.2, -0.4])
    shares.see(np.repeat(groups, 10**6), np.repeat(true, 10**6))
    shares.move(TAU, 1.0)
    found = shares.shares
    expected = weights[groups - 1] * np.exp(true / TAU)
    np.testing.assert_allclose(found[groups - 1], expected / expected.sum(), rtol=1e-3)
    worth = np.zeros(230)
    worth[groups - 1] = true
    best = TAU * np.log(float(expected.sum()))
    assert objective(found, weights, worth) == pytest.approx(best, abs=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = found * np.exp(rng.normal(0, 0.3, 230))
        assert objective(other / other.sum(), weights, worth) < best


def test_every_part_of_the_way_improves_the_objective():
    weights, groups = base_law(), np.array([2, 62, 225])
    shares, worth = SpacegroupShares(weights), np.zeros(230)
    worth[groups - 1] = [-0.5, -0.2, -0.4]
    before = objective(weights, weights, worth)
    for _ in range(30):
        shares.see(np.repeat(groups, 1000), np.repeat(worth[groups - 1], 1000))
        shares.move(TAU, 0.2)
        now = objective(shares.shares, weights, worth)
        assert now > before
        before = now


def test_rare_groups_are_drawn_towards_the_mean():
    shares = SpacegroupShares(np.ones(230))
    shares.see(np.array([1] * 1000 + [2]), np.array([0.0] * 1000 + [5.0]))
    mean = 5 / 1001
    assert shares.worth(np.array([1, 2, 3])) == pytest.approx(
        [PRIOR * mean / (1000 + PRIOR), (5 + PRIOR * mean) / (1 + PRIOR), mean]
    )


def test_older_crystals_count_less():
    shares = SpacegroupShares(np.ones(230))
    for value in (0.0, 1.0):
        shares.see(np.full(10**5, 7), np.full(10**5, value))
    assert shares.worth(np.array([7]))[0] == pytest.approx(1 / 1.8, abs=1e-3)


def test_the_log_ratio_is_that_of_the_shares_and_nothing_is_tilted_at_first():
    weights = base_law()
    shares = SpacegroupShares(weights)
    assert shares.shares is weights
    assert shares.memory() == {}
    assert (shares.log_ratio(np.array([2, 62])) == 0).all()
    shares.see(np.array([2, 62, 225]), np.array([0.0, 1.0, 0.0]))
    shares.move(TAU, 0.5)
    law = shares.shares
    assert law.sum() == pytest.approx(1)
    groups = np.array([2, 62, 225])
    np.testing.assert_allclose(shares.log_ratio(groups), np.log(law[groups - 1] / weights[groups - 1]), atol=1e-12)


def test_a_memory_that_was_written_is_read_back_with_the_same_bits():
    shares = SpacegroupShares(base_law())
    shares.see(np.array([2, 62, 225]), np.array([0.1, 1.0 / 3, -0.7]))
    shares.move(TAU, 0.3)
    again = SpacegroupShares.of(base_law(), json.loads(json.dumps(shares.memory())))
    for name in ("tilt", "total", "count", "shares"):
        np.testing.assert_array_equal(getattr(again, name), getattr(shares, name))


def test_policy_and_shares_together_attain_the_attainable_on_an_enumerable_model():
    """Three groups of four crystals: L* is a finite sum. With the groups' shares as they were, no policy reaches it."""
    base = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.05, 0.05, 0.1, 0.8]], dtype=torch.float64)
    reward = torch.tensor(
        [[-0.8, -0.1, -0.9, -0.4], [-0.5, -0.6, 0.0, -0.7], [-0.2, -0.9, -0.3, -0.8]], dtype=torch.float64
    )
    groups, weights = np.array([2, 62, 225]), base_law()
    law = torch.from_numpy(weights[groups - 1])
    within = TAU * torch.log((base * (reward / TAU).exp()).sum(1))
    best = float(TAU * torch.log((law * (within / TAU).exp()).sum()))
    bound, start = float((law * within).sum()), float((law * (base * reward).sum(1)).sum())

    def attained(rate: float) -> float:
        torch.manual_seed(4)
        logits, shares = base.log().clone().requires_grad_(), SpacegroupShares(weights)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for wave in range(150):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - wave / 150)
            asked = torch.from_numpy(shares.shares[groups - 1])
            log_p = torch.log_softmax(logits, dim=1)
            g = torch.multinomial(asked, 200, replacement=True)
            x = torch.multinomial(log_p.detach().exp()[g], 1)[:, 0]
            ratio = (log_p.detach() - base.log())[g, x]
            shares.see(groups[g.numpy()], (reward[g, x] - TAU * ratio).numpy())
            worth = torch.from_numpy(shares.worth(groups[g.numpy()]))
            target = base.log()[g, x] + (reward[g, x] - worth) / TAU
            shares.move(TAU, rate)
            optimizer.zero_grad()
            losses.balance(log_p[g, x], target).mean().backward()
            optimizer.step()
        log_p, asked = torch.log_softmax(logits.detach(), dim=1), torch.from_numpy(shares.shares[groups - 1])
        own = (log_p.exp() * (reward - TAU * (log_p - base.log()))).sum(1)
        value = float((asked * (own - TAU * (asked / law).log())).sum())
        return (value - start) / (best - start)

    assert attained(0.2) > 0.95
    assert attained(0.0) < (bound - start) / (best - start) < 0.9
    assert attained(0.0) > 0.95 * (bound - start) / (best - start)
