"""The numbers by which one sees whether reinforcement is well; logged at every step, whatever the algorithm."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from crystalforge.model.likelihood import LogProb
from crystalforge.rewards import tilted
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.journal import Scored, unique_share
from crystalforge.rl.monitor import IsKnown
from crystalforge.rl.policy import UpdateHealth

QUANTILES = (10, 50, 90)


@dataclass
class Attained:
    """What a run has learned of L(base) and of L* = tau ln Z, to say how much of their difference it has attained.

    L(base) is the mean reward of the first step's crystals, which are the base's. Every crystal of every step gives an
    unbiased estimate of Z, p_base/p exp(r/tau): log_sum is the logarithm of their sum. JSON-able.
    """

    base: float | None = None
    log_sum: float = -math.inf
    count: int = 0

    @staticmethod
    def of(memory: dict[str, Any]) -> Attained:
        """From what `memory` gave."""
        return Attained(**{**memory, "log_sum": -math.inf if memory.get("log_sum") is None else memory["log_sum"]})

    def memory(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return asdict(self) | {"log_sum": self.log_sum if math.isfinite(self.log_sum) else None}

    def add(
        self, reward: Float64[np.ndarray, " B"], log_ratio: Float64[np.ndarray, " B"], tau: float
    ) -> dict[str, float]:
        """Take a step's crystals into account; gives `objective/max` and the effective sample size of their weights."""
        if self.base is None:
            self.base = float(reward.mean())
        found = tilted.optimum(reward, tau, log_ratio)
        if found.n:
            self.log_sum = float(np.logaddexp(self.log_sum, found.value / tau + math.log(found.n)))
            self.count += found.n
        return {"objective/max": self.optimum(tau), "objective/effective": found.effective}

    def optimum(self, tau: float) -> float:
        """L* by all crystals so far."""
        return tau * (self.log_sum - math.log(self.count)) if self.count else 0.0

    def share(self, value: float, tau: float) -> float:
        """(L - L(base)) / (L* - L(base)); 0 where there is nothing to attain."""
        assert self.base is not None, "a step was added before"
        room = self.optimum(tau) - self.base
        return (value - self.base) / room if room > 0 else 0.0


def objective_health(
    config: FinetuneConfig, scored: Scored, log_ratio: Float64[np.ndarray, " B"], attained: Attained
) -> dict[str, float]:
    """L of the policy by its own crystals, with standard error, the greatest L by all so far, and the share attained.

    Where a guard refused some, the same of the law that is left when they are drawn again (`filtered/...`), with the
    share of draws that pass.
    """
    reward, tau = scored.scores.values, config.tau
    found = tilted.objective(reward, log_ratio, tau)
    if not found.n:
        return {"objective": 0.0}
    metrics = {"objective": found.value, "objective/error": found.error if math.isfinite(found.error) else 0.0}
    metrics |= attained.add(reward, log_ratio, tau)
    metrics["objective/attained"] = attained.share(found.value, tau)
    passed = ~scored.scores.refused
    if 0 < passed.sum() < len(passed):
        cut = tilted.objective(reward, log_ratio, tau, passed)
        if cut.n >= tilted.FEWEST:
            metrics |= {
                "filtered/share": float(passed.mean()),
                "filtered/reward": float(reward[passed].mean()),
                "filtered/kl": tilted.divergence(log_ratio, passed).value,
                "filtered/objective": cut.value,
                "filtered/objective_error": cut.error,
                "filtered/attained": attained.share(cut.value, tau),
            }
    return metrics


def rollout_health(
    scored: Scored,
    log_prob: LogProb,
    log_ratio: Float64[np.ndarray, " B"],
    is_known: IsKnown | None,
) -> dict[str, float]:
    """Metrics of a batch before it is learned from. log_ratio: ln(p/p_base) of each crystal, nats.

    kl/base: mean of ln(p/p_base) in nats per
    crystal, with its spread over crystals. entropy/<factor>: mean of -ln p of that factor, in nats per crystal.
    sampler/log_prob_error: largest disagreement between the sampler's log-probability and the likelihood's.
    """
    scores = scored.scores
    now = log_prob.total.double().cpu().numpy()
    finite = np.isfinite(log_ratio)
    ratio = log_ratio[finite]
    metrics = {
        "reward/mean": float(scores.values.mean()),
        "reward/std": float(scores.values.std()),
        "reward/best": float(scores.values.max()),
        "reward/mean_ok": float(scores.values[scores.ok].mean()) if scores.ok.any() else float(scores.values.mean()),
        "kl/base": float(ratio.mean()) if len(ratio) else 0.0,
        "kl/base_std": float(ratio.std()) if len(ratio) else 0.0,
        "unique/share": unique_share(scored.tokens),
        "floors/share": float(1 - scores.ok.mean()),
        "not_finite/share": float(1 - finite.mean()),
        "sites/mean": float(scored.tokens.n_sites.mean()),
    }
    for quantile in QUANTILES:
        metrics[f"reward/q{quantile}"] = float(np.percentile(scores.values, quantile))
    for status, count in scores.counts().items():
        if status != "ok":
            metrics[f"floors/{status}"] = count / len(scores)
    for name, values in scores.components.items():
        if np.isfinite(values).any():
            metrics[f"component/{name}"] = float(np.nanmean(np.where(np.isfinite(values), values, np.nan)))
    for name, values in log_prob.factors().items():
        values = values[torch.isfinite(values)]
        metrics[f"entropy/{name}"] = float(-values.double().mean()) if len(values) else 0.0
    errors = np.abs(now - scored.log_prob)
    errors = errors[np.isfinite(errors)]
    metrics["sampler/log_prob_error"] = float(errors.max()) if len(errors) else 0.0
    if is_known is not None:
        metrics["novel/share"] = float(1 - np.asarray(is_known(scored.tokens)).mean())
    return metrics


def update_health(update: UpdateHealth | None) -> dict[str, float]:
    """Metrics of learning from a batch; none when there was nothing to learn from."""
    if update is None:
        return {"update/optimizer_steps": 0.0}
    return {
        "update/loss": update.loss,
        "update/optimizer_steps": float(update.optimizer_steps),
        "update/skipped_steps": float(update.skipped_steps),
        "update/stopped_early": float(update.stopped_early),
        "ratio/first_error": update.first_ratio_error,
        "ratio/largest": update.largest_ratio,
        "kl/step": update.approx_kl,
        "clip/fraction": update.clip_fraction,
        "gradient/norm": update.gradient_norm,
    }
