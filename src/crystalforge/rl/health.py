"""The numbers by which one sees whether reinforcement is well; logged at every step, whatever the algorithm."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from crystalforge.model.likelihood import LogProb
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.journal import Scored, unique_share
from crystalforge.rl.monitor import IsKnown
from crystalforge.rl.policy import UpdateHealth

QUANTILES = (10, 50, 90)


def rollout_health(
    config: FinetuneConfig,
    scored: Scored,
    log_prob: LogProb,
    log_prob_base: Float[torch.Tensor, " B"],
    is_known: IsKnown | None,
) -> dict[str, float]:
    """Metrics of a batch before it is learned from.

    objective: mean of r - tau ln(p/p_base), the quantity being maximised. kl/base: mean of ln(p/p_base) in nats per
    crystal, with its spread over crystals. entropy/<factor>: mean of -ln p of that factor, in nats per crystal.
    sampler/log_prob_error: largest disagreement between the sampler's log-probability and the likelihood's.
    """
    scores = scored.scores
    now = log_prob.total.double().cpu().numpy()
    ratio = now - log_prob_base.double().cpu().numpy()
    finite = np.isfinite(ratio)
    ratio = ratio[finite]
    metrics = {
        "reward/mean": float(scores.values.mean()),
        "reward/std": float(scores.values.std()),
        "reward/best": float(scores.values.max()),
        "reward/mean_ok": float(scores.values[scores.ok].mean()) if scores.ok.any() else float(scores.values.mean()),
        "objective": float((scores.values[finite] - config.tau * ratio).mean()) if len(ratio) else 0.0,
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
