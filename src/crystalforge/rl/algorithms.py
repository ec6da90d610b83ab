"""What each algorithm learns from a scored batch: which rows, with which advantage, by which loss.

| algorithm | rows | advantage | loss | passes |
|---|---|---|---|---|
| ppo | all | shaped - moving baseline | clipped ratio | inner_steps |
| balance | all, and some of earlier steps, see `kept` | - | error of ln(p/p_base) against r/tau | inner_steps |
| reinforce | all | shaped - moving baseline | score function | 1 |
| rloo | all | shaped - mean of the others | score function | 1 |
| grpo | all, in groups of one space group | reward relative to the group | clipped ratio + KL estimate | inner_steps |
| dpo | best with worst, second best with second worst, ... of each group | - | preference | inner_steps |
| sft | the pool of kept crystals, see `supervised` | - | likelihood | inner_steps |

`shaped` is r - tau ln(p/p_base), see `advantage`. Balance, GRPO and DPO carry the base in their loss instead.

Shapes: B crystals of the step, n rows learned from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crystalforge.rl import losses
from crystalforge.rl.advantage import (
    MovingBaseline,
    group_relative,
    leave_one_out,
    shaped_reward,
    standardised,
)
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.policy import Loss


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a batch before learning from it; log-probabilities in nats, without gradient."""

    reward: Float[Tensor, " B"]
    spacegroup: Int64[Tensor, " B"]
    log_prob: Float[Tensor, " B"]
    log_prob_base: Float[Tensor, " B"]


def advantages(config: FinetuneConfig, evidence: Evidence, baseline: MovingBaseline) -> Float[Tensor, " B"]:
    """The advantage of each row; moves the baseline. Zeros for the algorithms that have none."""
    if config.algorithm in ("balance", "dpo", "sft"):
        return torch.zeros_like(evidence.reward)
    if config.algorithm == "grpo":
        return group_relative(evidence.reward, evidence.spacegroup, divide_by_spread=config.divide_by_spread)
    shaped = shaped_reward(evidence.reward, evidence.log_prob, evidence.log_prob_base, config.tau)
    advantage = leave_one_out(shaped) if config.algorithm == "rloo" else shaped - baseline.update(shaped)
    return standardised(advantage) if config.normalize_advantage else advantage


def loss_of(config: FinetuneConfig, evidence: Evidence, advantage: Float[Tensor, " B"]) -> Loss:
    """The loss of rows, given their present log-probabilities."""
    old, base = evidence.log_prob, evidence.log_prob_base
    target = balance_target(evidence, config.tau, config.lowest)

    def loss(rows: Int64[Tensor, " b"], now: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        match config.algorithm:
            case "ppo":
                return losses.ppo(now, old[rows], advantage[rows], config.clip)
            case "balance":
                return losses.balance(now, target[rows])
            case "reinforce" | "rloo":
                return losses.reinforce(now, advantage[rows])
            case "grpo":
                return losses.grpo(now, old[rows], base[rows], advantage[rows], config.clip, config.tau)
            case "dpo":
                return losses.dpo(now, base[rows], config.tau)
            case "sft":
                return losses.likelihood(now)

    return loss


def balance_target(evidence: Evidence, tau: float, lowest: float | None) -> Float[Tensor, " B"]:
    """ln p_base + r/tau - ln Z, the log-probability that each crystal should have; ln Z such that the mean error is 0.

    For crystals of the policy itself that is the best estimate of ln Z, for others as good a constant as any.
    """
    worth = (evidence.reward if lowest is None else evidence.reward.clamp(min=lowest)) / tau
    tilted = evidence.log_prob_base + worth
    return tilted + (evidence.log_prob - tilted).mean()


def preference_pairs(
    reward: Float[np.ndarray, " B"], group: Int64[np.ndarray, " B"], usable: Bool[np.ndarray, " B"]
) -> Int64[np.ndarray, " n"]:
    """Rows as chosen, rejected, chosen, ...: within each group, best against worst, and so on inwards.

    Pairs whose rewards are equal say nothing and are left out.
    """
    rows: list[int] = []
    for name in np.unique(group):
        members = np.flatnonzero((group == name) & usable)
        ranked = members[np.argsort(-reward[members], kind="stable")]
        half = len(ranked) // 2
        for chosen, rejected in zip(ranked[:half], ranked[::-1][:half], strict=True):
            if reward[chosen] > reward[rejected]:
                rows += [int(chosen), int(rejected)]
    return np.array(rows, dtype=np.int64)
