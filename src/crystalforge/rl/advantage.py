"""How much better than expected a sample was.

The quantity maximised is E_p[r(x) - tau ln(p(x)/p_base(x))] (arXiv 2504.02367, equation 1); its maximum is
p_base exp(r/tau)/Z. The bracket, taken as a constant of the sample, is the *shaped* reward; an advantage is the
shaped reward less a baseline that does not depend on the sample (or hardly).

Deviations from the published code:
- No gradient flows through the advantage. The published code differentiates tau ln(p/p_base) as well; that term's
  expectation is zero at the first inner step, so it adds only noise there, and at later steps it pulls outside
  the clipped region.
- The baseline averages the shaped reward, not the bare one, because the shaped one is what it is subtracted from.

Shapes: B samples of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# A group whose rewards all agree has no spread to divide by; below this the advantage is left at zero.
SMALLEST_SPREAD = 1e-8


def shaped_reward(
    reward: Float[Tensor, " B"], log_prob: Float[Tensor, " B"], log_prob_base: Float[Tensor, " B"], tau: float
) -> Float[Tensor, " B"]:
    """r - tau ln(p/p_base), without gradient; the log-probabilities are those at sampling."""
    return (reward - tau * (log_prob - log_prob_base)).detach()


@dataclass
class MovingBaseline:
    """Exponential moving average of batch means; starts at the first batch's mean.

    As published, the present batch is averaged in *before* the baseline is used: the gradient shrinks by the
    factor 1 - (1 - decay)/B, which is of no consequence, and the baseline follows a rising reward sooner.
    """

    decay: float
    value: float | None = None

    def update(self, shaped: Float[Tensor, " B"]) -> float:
        """Average the batch in and return the new baseline."""
        mean = float(shaped.double().mean())
        self.value = mean if self.value is None else self.decay * self.value + (1 - self.decay) * mean
        return self.value


def leave_one_out(shaped: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Shaped reward less the mean of the *other* samples (RLOO, arXiv 2402.14740): exactly unbiased.

    Needs B >= 2. Equals (r - mean) * B / (B - 1).
    """
    count = shaped.shape[0]
    assert count >= 2, "leaving one out needs two samples"
    return (shaped - shaped.mean()) * (count / (count - 1))


def group_relative(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], *, divide_by_spread: bool = True
) -> Float[Tensor, " B"]:
    """Reward less its group's mean, divided by its group's standard deviation (GRPO, arXiv 2402.03300).

    Division makes easy and hard groups count alike, at the price of a bias (arXiv 2503.20783): switch it off for
    the unbiased direction. A group of one, or one without spread, gets zero.
    """
    _, member = torch.unique(group, return_inverse=True)
    groups = int(member.max()) + 1 if len(member) else 0
    size = torch.bincount(member, minlength=groups).to(reward.dtype)
    mean = torch.zeros(groups, dtype=reward.dtype, device=reward.device).index_add(0, member, reward) / size
    centred = reward - mean[member]
    if not divide_by_spread:
        return centred
    variance = torch.zeros_like(mean).index_add(0, member, centred**2) / size
    spread = variance.sqrt()[member]
    return torch.where(spread > SMALLEST_SPREAD, centred / spread.clamp_min(SMALLEST_SPREAD), 0.0)


def standardised(advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Zero mean and unit variance over the batch: not in the paper, off unless asked for."""
    return (advantage - advantage.mean()) / advantage.std(correction=0).clamp_min(SMALLEST_SPREAD)
