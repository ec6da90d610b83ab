"""What is minimised: losses of one sample each, as functions of its log-probability under the policy.

Every function returns one loss per sample. The caller sums them and divides by the number of samples of the whole
minibatch, so the gradient does not depend on how the minibatch was cut into pieces.

Deviations from the published methods:
- Log-ratios are clamped to +-`LARGEST_LOG_RATIO` before exponentiation. A crystal's probability is a density in
  many coordinates, so a ratio can overflow; the clamp is far outside the clipped region and only keeps it finite.
- PPO's and GRPO's ratio is that of the whole crystal (arXiv 2504.02367), not of single tokens.

Shapes: b samples of one piece of a minibatch; log-probabilities in nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_LOG_RATIO = 20.0

Losses = Float[Tensor, " b"]


def ratio(log_prob: Float[Tensor, " b"], log_prob_old: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """p/p_old; exactly 1 where the two log-probabilities are the same number."""
    return (log_prob - log_prob_old).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def ppo(
    log_prob: Float[Tensor, " b"], log_prob_old: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip: float
) -> Losses:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) (arXiv 1707.06347, equation 7)."""
    rho = ratio(log_prob, log_prob_old)
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)


def reinforce(log_prob: Float[Tensor, " b"], advantage: Float[Tensor, " b"]) -> Losses:
    """-A ln p: the score-function estimator; valid only for samples of the present policy."""
    return -advantage * log_prob


def grpo(
    log_prob: Float[Tensor, " b"],
    log_prob_old: Float[Tensor, " b"],
    log_prob_base: Float[Tensor, " b"],
    advantage: Float[Tensor, " b"],
    clip: float,
    tau: float,
) -> Losses:
    """PPO's loss plus tau times a non-negative estimate of KL(p || p_base) (arXiv 2402.03300, equations 3 and 4).

    The estimate is u - 1 - ln u with u = p_base/p. Its gradient at p_old = p is, in expectation, not the gradient
    of KL(p || p_base) but of KL(p_base || p) (it is zero at the same place). It is used as published.
    """
    log_u = (log_prob_base - log_prob).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return ppo(log_prob, log_prob_old, advantage, clip) + tau * (log_u.exp() - 1 - log_u)


def dpo(log_prob: Float[Tensor, " b"], log_prob_base: Float[Tensor, " b"], tau: float) -> Losses:
    """-ln sigmoid(tau [ln(p/p_base)(chosen) - ln(p/p_base)(rejected)]) (arXiv 2305.18290, equation 7).

    Rows alternate: chosen, rejected, chosen, ... Each row of a pair carries half of the pair's loss. With
    preferences drawn with probability sigmoid(r_chosen - r_rejected), the optimum is p_base exp(r/tau)/Z.
    """
    assert log_prob.shape[0] % 2 == 0, "rows come in pairs"
    implied = tau * (log_prob - log_prob_base)
    pair = -logsigmoid(implied[0::2] - implied[1::2])
    return (pair / 2).repeat_interleave(2)


def likelihood(log_prob: Float[Tensor, " b"]) -> Losses:
    """-ln p: maximum likelihood on chosen samples (supervised fine-tuning)."""
    return -log_prob


def balance(log_prob: Float[Tensor, " b"], target: Float[Tensor, " b"]) -> Losses:
    """(ln p - target)^2 / 2 with target = ln p_base + r/tau - ln Z: zero for all crystals at p_base exp(r/tau)/Z alone.

    The log-variance loss (arXiv 2010.10436), or relative trajectory balance (arXiv 2405.20971): crystals may come
    from any law, so that all that were ever scored can be learned from. For crystals of the present policy, and ln Z
    the mean of r/tau - ln(p/p_base), its gradient is that of KL(p || p_base exp(r/tau)/Z).
    """
    return (log_prob - target) ** 2 / 2
