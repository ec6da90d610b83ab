"""The mathematics of reinforcement on models so small that every expectation is a finite sum."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from crystalforge.rl import advantage as adv
from crystalforge.rl import losses

# The optimisation below shrinks the error of ln p by a constant factor per step; 1e-6 leaves room for its end.
OPTIMUM_TOLERANCE = 1e-6
# Sums of a few dozen float64 terms of order one.
EXACT_TOLERANCE = 1e-12
# Central differences in float64 with step 1e-6: truncation 1e-12, rounding 1e-10 relative to losses of order one.
DIFFERENCE_TOLERANCE = 1e-8

BASE = torch.tensor([0.35, 0.05, 0.2, 0.25, 0.1, 0.05], dtype=torch.float64)
REWARD = torch.tensor([0.1, 0.5, -0.3, 0.2, 0.45, -1.0], dtype=torch.float64)


def closed_form(tau: float) -> torch.Tensor:
    """p_base exp(r/tau)/Z."""
    return torch.softmax(BASE.log() + REWARD / tau, dim=0)


def optimise(loss_of, *, rounds: int = 400, inner_steps: int = 3, rate: float = 0.5) -> torch.Tensor:
    """Probabilities after rounds of inner steps, from the base; `loss_of(ln p, ln p when sampled)`.

    The steps follow the natural gradient (for a softmax: divided by p), so rare outcomes converge like common ones.
    """
    logits = BASE.log().clone().requires_grad_()
    for _ in range(rounds):
        old = torch.log_softmax(logits, dim=0).detach()
        for _ in range(inner_steps):
            log_p = torch.log_softmax(logits, dim=0)
            (gradient,) = torch.autograd.grad(loss_of(log_p, old), logits)
            with torch.no_grad():
                logits -= rate * gradient / log_p.exp()
    return torch.softmax(logits.detach(), dim=0)


def ppo_loss(tau: float):
    def loss(log_p, old):
        shaped = adv.shaped_reward(REWARD, old, BASE.log(), tau)
        advantage = shaped - (old.exp() * shaped).sum()
        return (old.exp() * losses.ppo(log_p, old, advantage, 0.2)).sum()

    return loss


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
def test_the_optimum_of_ppo_is_the_tilted_base(tau):
    found = optimise(ppo_loss(tau))
    assert (found - closed_form(tau)).abs().max() < OPTIMUM_TOLERANCE


def test_the_optimum_of_reinforce_is_the_tilted_base():
    tau = 0.3

    def loss(log_p, old):
        shaped = adv.shaped_reward(REWARD, old, BASE.log(), tau)
        return (old.exp() * losses.reinforce(log_p, shaped)).sum()

    assert (optimise(loss, inner_steps=1) - closed_form(tau)).abs().max() < OPTIMUM_TOLERANCE


def test_the_optimum_of_dpo_on_bradley_terry_preferences_is_the_tilted_base():
    tau = 0.5
    pairs = torch.tensor([(i, j) for i, j in itertools.permutations(range(len(BASE)), 2)])
    # pairs of base samples, and how often the first of a pair is preferred
    preference = BASE[pairs].prod(dim=1) * torch.sigmoid(REWARD[pairs[:, 0]] - REWARD[pairs[:, 1]])

    def loss(log_p, _):
        rows = pairs.reshape(-1)
        return (preference.repeat_interleave(2) * losses.dpo(log_p[rows], BASE.log()[rows], tau)).sum()

    assert (optimise(loss) - closed_form(tau)).abs().max() < OPTIMUM_TOLERANCE


def test_the_optimum_of_grpo_has_its_own_closed_form():
    # Stationarity of sum_x p A(x) with the published KL term is p (r - nu) = tau (p - p_base), that is
    # p = p_base / (1 - (r - nu)/tau), with nu fixed by normalisation.
    tau = 2.0

    def loss(log_p, old):
        advantage = REWARD - (old.exp() * REWARD).sum()
        return (old.exp() * losses.grpo(log_p, old, BASE.log(), advantage, 0.2, tau)).sum()

    low, high = float(REWARD.max()) - tau + 1e-9, float(REWARD.max()) + 10
    for _ in range(200):
        nu = (low + high) / 2
        total = float((BASE / (1 - (REWARD - nu) / tau)).sum())
        low, high = (nu, high) if total > 1 else (low, nu)
    expected = BASE / (1 - (REWARD - nu) / tau)
    assert (optimise(loss) - expected).abs().max() < OPTIMUM_TOLERANCE


def test_reward_and_divergence_fall_as_tau_rises():
    def summary(tau):
        p = optimise(ppo_loss(tau))
        return float((p * REWARD).sum()), float((p * (p / BASE).log()).sum())

    rewards, divergences = zip(*(summary(tau) for tau in (0.05, 0.1, 0.2)), strict=True)
    assert rewards[0] > rewards[1] > rewards[2] > float((BASE * REWARD).sum())
    assert divergences[0] > divergences[1] > divergences[2] > 0


def test_leave_one_out_is_unbiased():
    """The mean over *all* batches of the estimator equals the exact gradient."""
    base, reward, tau, count = BASE[:3] / BASE[:3].sum(), REWARD[:3], 0.3, 3
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, dim=0)
    shaped = adv.shaped_reward(reward, log_p, base.log(), tau)
    exact_objective = (log_p.exp() * (reward - tau * (log_p - base.log()))).sum()
    (exact,) = torch.autograd.grad(exact_objective, logits, retain_graph=True)
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in itertools.product(range(3), repeat=count):
        rows = torch.tensor(batch)
        loss = losses.reinforce(log_p[rows], adv.leave_one_out(shaped[rows])).mean()
        (gradient,) = torch.autograd.grad(-loss, logits, retain_graph=True)
        expected += log_p.detach()[rows].sum().exp() * gradient
    assert (expected - exact).abs().max() < EXACT_TOLERANCE


@pytest.mark.parametrize("clip", [0.05, 0.2])
def test_the_gradient_of_ppo_equals_finite_differences(clip):
    generator = torch.Generator().manual_seed(3)
    old = torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    advantage = torch.randn(6, generator=generator, dtype=torch.float64)
    logits = (old + 0.3 * torch.randn(6, generator=generator, dtype=torch.float64)).requires_grad_()

    def value(x):
        return losses.ppo(torch.log_softmax(x, dim=0), old, advantage, clip).mean()

    (gradient,) = torch.autograd.grad(value(logits), logits)
    step = 1e-6
    for i in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[i] = step
        difference = float(value(logits.detach() + shift) - value(logits.detach() - shift)) / (2 * step)
        assert float(gradient[i]) == pytest.approx(difference, abs=DIFFERENCE_TOLERANCE)


def test_ppo_follows_its_definition_on_both_sides_of_the_clip():
    old = torch.zeros(6, dtype=torch.float64)
    log_prob = torch.tensor([1.5, 1.1, 0.7, 1.5, 0.9, 0.7], dtype=torch.float64).log()
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    # better than expected: gain capped at 1.2; worse than expected: no reward for going below 0.8
    assert losses.ppo(log_prob, old, advantage, 0.2).tolist() == pytest.approx(
        [-1.2, -1.1, -0.7, 1.5, 0.9, 0.8], abs=EXACT_TOLERANCE
    )


def test_no_gradient_flows_through_the_advantage():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert not adv.shaped_reward(torch.ones(2), log_prob, torch.zeros(2), 0.5).requires_grad


def test_an_extreme_ratio_stays_finite():
    loss = losses.ppo(torch.tensor([500.0, -500.0]), torch.zeros(2), torch.tensor([-1.0, 1.0]), 0.2)
    assert torch.isfinite(loss).all()


def test_the_moving_baseline_starts_at_the_first_mean_and_then_follows_slowly():
    baseline = adv.MovingBaseline(0.95)
    assert baseline.update(torch.tensor([1.0, 3.0])) == 2.0
    assert math.isclose(baseline.update(torch.tensor([4.0, 4.0])), 0.95 * 2 + 0.05 * 4)


def test_group_relative_centres_and_scales_each_group_by_itself():
    reward = torch.tensor([1.0, 3.0, 10.0, 10.0, 5.0])
    group = torch.tensor([7, 7, 225, 225, 1])
    assert adv.group_relative(reward, group).tolist() == pytest.approx([-1, 1, 0, 0, 0])
    assert adv.group_relative(reward, group, divide_by_spread=False).tolist() == pytest.approx([-1, 1, 0, 0, 0])


def test_standardised_has_unit_spread():
    out = adv.standardised(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert float(out.mean()) == pytest.approx(0, abs=1e-6)
    assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-6)
