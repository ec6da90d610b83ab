"""Reinforcement fine-tuning: draw, score, learn, look, save.

PPO follows arXiv 2504.02367 (equation 1 and appendix C): reward r - tau ln(p/p_base), moving baseline with decay 0.95,
clip 0.2, Adam at 1e-4. Declared deviations, here and in the files that make them:
- No gradient through the advantage; baseline of the shaped reward (`advantage`).
- Log-probabilities follow the exact law that crystals are drawn from (joint lattice mixture, independent
  coordinates only); the published code scores another law than it draws from (`model.distributions`).
- Three passes over each batch, as in the paper (the published code makes five), in float32, without dropout.
- Under constraints the ratio and the KL are still those of the unconstrained policy, whereas crystals are drawn
  from the constrained one: improvements are sought among the allowed crystals, and KL is measured on them.
- A floored crystal is part of the batch with its documented floor.

What a run leaves in `out`: `identity.json` (what defines the run), `checkpoints/`, `samples/` (every scored crystal),
`relaxed/` (those relaxed for supervised learning), `held_out/` (the held-out reward's scores), `metrics.jsonl`,
`pareto.parquet` (the best compromises seen, see `pareto`), `good/` (the last policy that passed the monitor), `best/`
(that of the greatest objective at a look), `model/` and `result.json` (written last).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from crystalforge.common import termination
from crystalforge.common.errors import InputError
from crystalforge.common.progress import Progress
from crystalforge.model.checkpoint import load_model
from crystalforge.rewards.protocol import Reward, RewardUnavailable
from crystalforge.rl import checkpoint, record
from crystalforge.rl.checkpoint import RunState
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.monitor import IsKnown
from crystalforge.rl.record import FinetuneResult
from crystalforge.rl.rollout import Screen, Source, weights_within
from crystalforge.rl.run import Run
from crystalforge.rl.supervised import Relaxer
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import MakeEngine, TorchEngine
from crystalforge.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]


def finetune(
    config: FinetuneConfig,
    base: Path,
    reward: Reward,
    spacegroup_weights: Float64[np.ndarray, " 230"],
    out: Path,
    *,
    seed: int,
    held_out: Reward | None = None,
    is_known: IsKnown | None = None,
    relaxer: Relaxer | None = None,
    screen: Screen | None = None,
    on_metrics: OnMetrics | None = None,
    ranks: Ranks = ALONE,
    make_engine: MakeEngine = TorchEngine,
) -> FinetuneResult:
    """Fine-tune the model in `base` against `reward`; the tuned one is left in `out/model`.

    spacegroup_weights: how often to ask for each space group, any positive scale. held_out: judges every
    `config.monitor.every` steps and is never trained on. is_known: marks crystals that are not new (for the
    novelty metric). relaxer: what `config.relax` relaxes with. screen: the reward's guards, which `config.filter` draws
    against. on_metrics(step, metrics) is called once per step;
    after a resumption it is called again for the steps since the last checkpoint.

    Killed at any instant and called again with the same arguments, it ends with the same weights, bit for bit, and
    no crystal is scored twice. Raises InputError when `out` holds a run with another base, reward, configuration or
    seed (settings of extent, such as `steps`, may change), and passes RewardUnavailable on after saving its state.
    """
    weights = weights_within(np.asarray(spacegroup_weights, dtype=np.float64), config.spacegroups, config.constraints)
    groups = config.batch_size // (config.group_size if config.grouped else 1)
    if groups < ranks.world_size:
        raise InputError(
            f"{groups} crystals (or groups of them) a step cannot be shared among {ranks.world_size} processes",
            source="finetune.batch_size",
            remedy="enlarge the batch, or start fewer processes",
        )
    if config.filter and screen is None:
        raise InputError(
            "drawing until crystals pass the reward's guards needs these guards, and none were given",
            source="finetune.filter",
            remedy="give the screen of the reward (crystalforge.rewards.screen), or set finetune.filter=false",
        )
    policy, frozen = (load_model(base, device=ranks.device).model for _ in range(2))
    frozen.requires_grad_(False)
    source = Source(weights, seed, config.constraints, config.group_size if config.grouped else 1)
    identity = record.identity_of(config, frozen, reward, held_out, weights, seed)
    ranks.by_first(lambda: checkpoint.claim(out / "identity.json", identity))
    finished = ranks.by_first(lambda: record.finished(out, config))
    if finished is not None:
        return finished

    optimizer = OptimizerConfig(
        learning_rate=config.learning_rate, gradient_clip=config.gradient_clip, ema_decay=config.average
    )
    engine = make_engine(policy, optimizer, ranks)
    state = checkpoint.load_newest(out / "checkpoints", engine) or RunState()
    run = Run(config, out, seed, engine, frozen, reward, held_out, source, is_known, relaxer, screen, state)
    metrics = ranks.by_first(lambda: record.cut_metrics(out / record.METRICS, state.step))
    stopped: str | None = None
    progress = Progress("finetune", config.steps, unit="step", start=state.step, quiet=not ranks.leads)
    with progress, termination.whole_steps():
        while state.step < config.steps:
            stopped = run.exhausted()
            if stopped:
                break
            step = state.step
            try:
                metrics, stopped = run.step()
            except RewardUnavailable:
                run.save()
                if ranks.leads:
                    log.warning("the reward is not available: state saved at step %d of %d", step, config.steps)
                raise
            if ranks.leads:
                with (out / record.METRICS).open("a") as stream:
                    stream.write(json.dumps({"step": step} | metrics) + "\n")
                if on_metrics is not None:
                    on_metrics(step, metrics)
            if stopped:
                break
            if state.step % config.checkpoint_every == 0:
                run.save()
            progress.update(note=f"reward {metrics['reward/mean']:.3f}  KL {metrics['kl/base']:.2f}")
            if ranks.any(termination.asked()):
                run.save()
                raise termination.Terminated
    return run.finish(identity, stopped, metrics)
