"""Losses and advantages at points whose values can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crystalforge.rl import advantage as adv
from crystalforge.rl import losses
from crystalforge.rl.advantage import MovingBaseline
from crystalforge.rl.algorithms import Evidence, advantages, balance_target, loss_of, preference_pairs
from crystalforge.rl.config import FinetuneConfig


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: torch.Tensor, *expected: float) -> bool:
    return found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_the_ratio_is_clamped_at_twenty_nats_on_both_sides():
    found = losses.ratio(numbers(1, 30, -30, 19.5), numbers(0.5, 0, 0, 0))
    assert same(found, math.exp(0.5), math.exp(20), math.exp(-20), math.exp(19.5))
    assert same(losses.grpo(numbers(-30), numbers(-30), numbers(0), numbers(0), 0.2, 1.0), math.exp(20) - 1 - 20)
    assert same(losses.grpo(numbers(30), numbers(30), numbers(0), numbers(0), 0.2, 1.0), math.exp(-20) - 1 + 20)


def test_reinforce_is_the_advantage_times_the_log_probability():
    assert same(losses.reinforce(numbers(-2, -3), numbers(0.5, -4)), 1, -12)


def test_grpo_adds_tau_times_an_estimate_of_the_divergence():
    now, old, base, gain = numbers(-1, -2), numbers(-1, -2.1), numbers(-1.5, -1), numbers(2, -1)
    u = [math.exp(-0.5), math.exp(1)]
    ratios = [1, math.exp(0.1)]
    expected = [-2 * ratios[0] + 0.3 * (u[0] - 1 + 0.5), ratios[1] + 0.3 * (u[1] - 1 - 1)]
    assert same(losses.grpo(now, old, base, gain, 0.2, 0.3), *expected)


def test_dpo_wants_the_chosen_row_of_each_pair_above_the_rejected_one():
    now, base = numbers(-1, -2, -3, -1), numbers(-1.5, -1, -3, -2)
    pairs = [0.4 * (0.5 - -1), 0.4 * (0 - 1)]
    halves = [math.log1p(math.exp(-pair)) / 2 for pair in pairs]
    assert same(losses.dpo(now, base, 0.4), halves[0], halves[0], halves[1], halves[1])
    with pytest.raises(AssertionError, match="pairs"):
        losses.dpo(now[:3], base[:3], 0.4)


def test_likelihood_is_the_negative_logarithm():
    assert same(losses.likelihood(numbers(-2, -3.5)), 2, 3.5)


def test_balance_is_half_the_squared_error():
    log_prob = numbers(-1, -3).requires_grad_()
    found = losses.balance(log_prob, numbers(-4, -2.5))
    assert same(found.detach(), 4.5, 0.125)
    (gradient,) = torch.autograd.grad(found.sum(), log_prob)
    assert same(gradient, 3, -0.5)


# ---- advantages ------------------------------------------------------------------------------------------------------


def test_the_shaped_reward_pays_tau_for_each_nat():
    assert same(adv.shaped_reward(numbers(1, 1), numbers(-1, -5), numbers(-3, -4), 0.5), 0, 1.5)


def test_leaving_one_out_stretches_the_centred_reward():
    assert same(adv.leave_one_out(numbers(1, 4)), -3, 3)
    assert same(adv.leave_one_out(numbers(0, 3, 6)), -4.5, 0, 4.5)
    with pytest.raises(AssertionError, match="two samples"):
        adv.leave_one_out(numbers(1))


def test_groups_are_divided_by_their_own_spread():
    """Spreads other than one, or division could not be told from multiplication."""
    reward, group = numbers(0, 4, 10, 10.5, 11, 7), torch.tensor([9, 9, 2, 2, 2, 5])
    spread = math.sqrt(0.5 / 3)
    third = 0.5 / spread
    assert same(adv.group_relative(reward, group), -1, 1, -third, 0, third, 0)
    assert same(adv.group_relative(reward, group, divide_by_spread=False), -2, 2, -0.5, 0, 0.5, 0)


def test_a_spread_of_rounding_is_none():
    just = 2 * adv.SMALLEST_SPREAD
    reward = numbers(0, just / 2, 0, 2 * just)
    found = adv.group_relative(reward, torch.tensor([1, 1, 2, 2]))
    assert same(found, 0, 0, -1, 1)
    assert adv.SMALLEST_SPREAD == 1e-8


def test_no_crystals_have_no_advantage():
    assert adv.group_relative(numbers(), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_standardised_divides_by_the_spread_and_survives_having_none():
    assert same(adv.standardised(numbers(0, 8)), -1, 1)
    assert same(adv.standardised(numbers(3, 3)), 0, 0)


# ---- algorithms ------------------------------------------------------------------------------------------------------

EVIDENCE = Evidence(
    reward=numbers(1, 3, 0, 2), spacegroup=torch.tensor([5, 5, 8, 8]), log_prob=numbers(-1, -2, -3, -4),
    log_prob_base=numbers(-2, -2, -2, -5),
)  # fmt: skip
SHAPED = (0.5, 3, 0.5, 1.5)  # at tau 0.5


def config(algorithm: str, **changes: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"algorithm": algorithm, "tau": 0.5} | changes)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_the_moving_baseline_is_subtracted(algorithm):
    baseline = MovingBaseline(0.75, 5.0)
    found = advantages(config(algorithm), EVIDENCE, baseline)
    mean = 0.75 * 5 + 0.25 * 1.375
    assert baseline.value == pytest.approx(mean)
    assert same(found, *(value - mean for value in SHAPED))


def test_rloo_leaves_the_moving_baseline_alone():
    baseline = MovingBaseline(0.75, 5.0)
    assert same(advantages(config("rloo"), EVIDENCE, baseline), *((value - 1.375) * 4 / 3 for value in SHAPED))
    assert baseline.value == 5.0


def test_advantages_are_normalised_on_request():
    spread = float(numbers(*SHAPED).std(correction=0))
    found = advantages(config("ppo", normalize_advantage=True), EVIDENCE, MovingBaseline(0.75, 5.0))
    assert same(found, *((value - 1.375) / spread for value in SHAPED))


def test_grpo_compares_within_space_groups():
    reward = Evidence(numbers(1, 5, 0, 2), EVIDENCE.spacegroup, EVIDENCE.log_prob, EVIDENCE.log_prob_base)
    made = config("grpo", batch_size=20)
    assert same(advantages(made, reward, MovingBaseline(0.5)), -1, 1, -1, 1)
    made = config("grpo", batch_size=20, divide_by_spread=False)
    assert same(advantages(made, reward, MovingBaseline(0.5)), -2, 2, -1, 1)


@pytest.mark.parametrize("algorithm", ["balance", "dpo", "sft"])
def test_what_carries_the_base_in_its_loss_has_no_advantage(algorithm):
    baseline = MovingBaseline(0.5)
    assert same(advantages(config(algorithm), EVIDENCE, baseline), 0, 0, 0, 0)
    assert baseline.value is None


def test_the_target_of_balance_errs_by_nothing_on_average():
    found = balance_target(EVIDENCE, 0.5, None)
    tilted = numbers(-2 + 2, -2 + 6, -2 + 0, -5 + 4)
    assert same(found, *(tilted + (-2.5 - 0.25)).tolist())
    cut = balance_target(EVIDENCE, 0.5, 1.5)
    assert same(cut - cut[0], 0, 3, 0, -2)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("ppo", lambda now, rows, gain: losses.ppo(now, EVIDENCE.log_prob[rows], gain[rows], 0.2)),
        ("balance", lambda now, rows, gain: losses.balance(now, balance_target(EVIDENCE, 0.5, -0.5)[rows])),
        ("reinforce", lambda now, rows, gain: losses.reinforce(now, gain[rows])),
        ("rloo", lambda now, rows, gain: losses.reinforce(now, gain[rows])),
        ("grpo", lambda now, rows, gain: losses.grpo(
            now, EVIDENCE.log_prob[rows], EVIDENCE.log_prob_base[rows], gain[rows], 0.2, 0.5)),
        ("dpo", lambda now, rows, gain: losses.dpo(now, EVIDENCE.log_prob_base[rows], 0.5)),
        ("sft", lambda now, rows, gain: losses.likelihood(now)),
    ],
)  # fmt: skip
def test_each_algorithm_minimises_its_own_loss_on_the_rows_asked_for(algorithm, expected):
    gain, rows, now = numbers(0.5, -1, 2, -0.25), torch.tensor([3, 1]), numbers(-3.9, -2.2)
    found = loss_of(config(algorithm, batch_size=20), EVIDENCE, gain)(rows, now)
    assert same(found, *expected(now, rows, gain).tolist())


def test_pairs_go_from_the_ends_inwards_within_each_group():
    reward = np.array([1.0, 4.0, 2.0, 3.0, 9.0, 5.0, 5.0, 7.0, 0.0])
    group = np.array([1, 1, 1, 1, 1, 2, 2, 3, 3])
    usable = np.array([True] * 4 + [False] + [True] * 4)
    # group 1: 4 over 1, 3 over 2; the unusable 9 is passed over. Group 2 has nothing to say.
    assert preference_pairs(reward, group, usable).tolist() == [1, 0, 3, 2, 7, 8]
    odd = preference_pairs(np.array([1.0, 2.0, 3.0]), np.array([4, 4, 4]), np.ones(3, dtype=bool))
    assert odd.tolist() == [2, 0]
    assert preference_pairs(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)).dtype == np.int64
