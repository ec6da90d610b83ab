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

Under several ranks each draws and scores its share of a step's crystals and takes its share of the gradient. All of
them know the whole scored batch, so baseline, KL, statistics and the monitor's verdict are the same everywhere without
further talk; the first rank reads and writes, and its clock counts. A crystal is the same whichever rank draws it.

What a run leaves in `out`: `identity.json` (what defines the run), `checkpoints/`, `samples/` (every scored crystal),
`relaxed/` (those relaxed for supervised learning), `held_out/` (the held-out reward's scores), `metrics.jsonl`,
`pareto.parquet` (the best compromises seen, see `pareto`), `good/` (the last policy that passed the monitor), `model/`
and `result.json` (written last).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from crystalforge.common import termination
from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.checkpoint import load_model, save_model, weights_hash
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import Reward, RewardUnavailable
from crystalforge.rl import checkpoint, journal
from crystalforge.rl.advantage import MovingBaseline
from crystalforge.rl.algorithms import Evidence, advantages, loss_of, preference_pairs
from crystalforge.rl.checkpoint import RunState
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.health import rollout_health, update_health
from crystalforge.rl.journal import Scored
from crystalforge.rl.monitor import IsKnown, Monitor, conclusion
from crystalforge.rl.pareto import ParetoSet
from crystalforge.rl.policy import Plan, UpdateHealth, improve, make_plan, measure
from crystalforge.rl.rollout import Source, roll_out, score_together, weights_within
from crystalforge.rl.supervised import Pool, Relaxer
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import Engine, MakeEngine, TorchEngine
from crystalforge.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]

# Settings that say how far a run goes, how often it is saved and by which means it is made, not where it goes: they
# may change on resumption.
EXTENT = {"steps", "max_scored", "max_seconds", "checkpoint_every", "keep_checkpoints", "engine"}


@dataclass(frozen=True)
class FinetuneResult:
    """What came out. stopped: why the run ended before its last step, or None. metrics: those of the last step.

    monitor: what its looks came to, see `monitor.conclusion`.
    """

    model_dir: Path
    steps: int
    stopped: str | None
    scored: int
    seconds: dict[str, float]
    metrics: dict[str, float]
    monitor: dict[str, Any] = field(default_factory=dict)


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
    on_metrics: OnMetrics | None = None,
    ranks: Ranks = ALONE,
    make_engine: MakeEngine = TorchEngine,
) -> FinetuneResult:
    """Fine-tune the model in `base` against `reward`; the tuned one is left in `out/model`.

    spacegroup_weights: how often to ask for each space group, any positive scale. held_out: judges every
    `config.monitor.every` steps and is never trained on. is_known: marks crystals that are not new (for the
    novelty metric). relaxer: what `config.relax` relaxes with. on_metrics(step, metrics) is called once per step;
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
    policy, frozen = (load_model(base, device=ranks.device).model for _ in range(2))
    frozen.requires_grad_(False)
    source = Source(weights, seed, config.constraints, config.group_size if config.grouped else 1)
    identity = _identity(config, frozen, reward, held_out, weights, seed)
    ranks.by_first(lambda: checkpoint.claim(out / "identity.json", identity))
    finished = ranks.by_first(lambda: _finished(out, config))
    if finished is not None:
        return finished

    optimizer = OptimizerConfig(learning_rate=config.learning_rate, gradient_clip=config.gradient_clip)
    engine = make_engine(policy, optimizer, ranks)
    state = checkpoint.load_newest(out / "checkpoints", engine) or RunState()
    run = _Run(config, out, seed, engine, frozen, reward, held_out, source, is_known, relaxer, state)
    metrics = ranks.by_first(lambda: _cut_metrics(out / "metrics.jsonl", state.step))
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
                with (out / "metrics.jsonl").open("a") as stream:
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


@dataclass
class _Run:
    """The moving parts of one session."""

    config: FinetuneConfig
    out: Path
    seed: int
    engine: Engine
    frozen: CrystalFormer
    reward: Reward
    held_out: Reward | None
    source: Source
    is_known: IsKnown | None
    relaxer: Relaxer | None
    state: RunState

    def __post_init__(self) -> None:
        self.policy, self.ranks = self.engine.model, self.engine.ranks
        self.monitor = Monitor(self.config.monitor, self.state.monitor)
        self.pareto = ParetoSet(self.config.pareto, self.out) if self.config.pareto else None
        self.pool = Pool(self.config, self.out, self.reward, self.relaxer)
        self.device = next(self.policy.parameters()).device

    def exhausted(self) -> str | None:
        """Why the budget allows no further step, if it does not."""
        spent, limit = self.state.scored + self.config.scored_per_step, self.config.max_scored
        if limit is not None and spent > limit:
            return f"budget: another batch would make {spent} scored crystals, more than max_scored {limit}"
        seconds, allowed = self.state.seconds.get("step", 0.0), self.config.max_seconds
        if allowed is not None and seconds >= allowed:
            return f"budget: {seconds:.0f} s spent of max_seconds {allowed:g}"
        return None

    def step(self) -> tuple[dict[str, float], str | None]:
        """Draw, score, look and learn once. Gives the metrics, and why to stop (nothing was learned then)."""
        began, began_cpu = time.perf_counter(), time.process_time()
        config, state = self.config, self.state
        rollout = roll_out(
            self.policy,
            self.source,
            self.reward,
            step=state.step,
            first_index=state.next_index,
            count=config.batch_size,
            folder=self.out / "samples",
            ranks=self.ranks,
        )
        scored = rollout.scored
        batch = TokenBatch.from_tokens(scored.tokens, device=self.device)
        at = time.perf_counter()
        plan = self._plan(scored.tokens, np.arange(len(scored)))
        log_prob, base = measure(self.policy, batch, plan, ranks=self.ranks), self._base(batch, plan)
        evidence = Evidence(
            torch.from_numpy(scored.scores.values).to(self.device, log_prob.total.dtype),
            batch.spacegroup,
            log_prob.total,
            base,
        )
        measured = time.perf_counter()
        metrics = rollout_health(config, scored, log_prob, base, self.is_known)
        if self.pareto is not None:
            pareto = self.pareto
            metrics |= self.ranks.by_first(lambda: pareto.add(state.step, scored))
        stopped = self._look(scored, log_prob, evidence, metrics)
        looked = time.perf_counter()
        if stopped is None:
            metrics |= update_health(self._learn(scored, batch, plan, evidence, metrics))
            state.step += 1
            state.next_index += len(scored)
            state.scored += len(scored)
        done = time.perf_counter()
        seconds = {
            "sample": rollout.seconds_sample,
            "score": rollout.seconds_score,
            "measure": measured - at,
            "monitor": looked - measured,
            "update": done - looked,
            "step": done - began,
            "cpu": time.process_time() - began_cpu,
        }
        seconds = self.ranks.share(seconds)
        state.spend(**seconds)
        metrics |= {f"seconds/{phase}": value for phase, value in seconds.items()}
        metrics |= {"budget/scored": float(state.scored), "budget/seconds": state.seconds["step"]}
        return metrics, stopped

    def save(self) -> None:
        """Write a checkpoint of this instant."""
        self.state.monitor = self.monitor.memory()
        checkpoint.save(self.out / "checkpoints", self.engine, self.state, keep=self.config.keep_checkpoints)

    def finish(self, identity: dict[str, Any], stopped: str | None, metrics: dict[str, float]) -> FinetuneResult:
        """Write the tuned model and the result. A run that the monitor stopped gives its last good policy."""
        distrusted = stopped is not None and stopped.startswith("monitor")
        if not distrusted:
            self.save()
        return self.ranks.by_first(lambda: self._write_result(identity, stopped, metrics, distrusted))

    def _write_result(
        self, identity: dict[str, Any], stopped: str | None, metrics: dict[str, float], distrusted: bool
    ) -> FinetuneResult:
        policy = self.policy
        if distrusted:
            good = self.out / "good"
            policy = load_model(good).model if good.exists() else self.frozen
        info = self._info() | {"stopped": stopped, "identity": identity}
        save_model(self.out / "model", policy, info=info)
        judged_by = None if self.held_out is None else str(self.held_out.version)
        looks = conclusion(_rows(self.out / "metrics.jsonl"), stopped, held_out=judged_by)
        result = FinetuneResult(
            self.out / "model", self.state.step, stopped, self.state.scored, dict(self.state.seconds), metrics, looks
        )
        write_json(self.out / "result.json", asdict(result) | {"model_dir": "model", "asked": _extent(self.config)})
        return result

    def _info(self) -> dict[str, Any]:
        """What a model says of itself: space groups are asked of it as they were asked of it here."""
        return {
            "kind": "finetune",
            "steps": self.state.step,
            "spacegroup_weights": self.source.weights.tolist(),
        }

    def _plan(self, tokens: Tokens, rows: np.ndarray, unit: int = 1) -> Plan:
        config = self.config
        return make_plan(
            tokens.n_sites,
            rows,
            piece_tokens=config.piece_tokens,
            minibatches=config.minibatches,
            unit=unit,
            rng=np.random.default_rng([self.seed, self.state.step]),
        )

    def _base(self, batch: TokenBatch, plan: Plan) -> torch.Tensor:
        return measure(self.frozen, batch, plan, as_in_update=False, ranks=self.ranks).total

    def _look(self, scored: Scored, log_prob: Any, evidence: Evidence, metrics: dict[str, float]) -> str | None:
        """Monitor when it is due: add to the metrics, keep a good policy, or say why to stop."""
        step = self.state.step
        if not self.monitor.due(step):
            return None
        judged = None
        if self.held_out is not None:
            path = journal.step_file(self.out / "held_out", step)
            judged = self.ranks.by_first(lambda: journal.recall_scores(path, scored.index))
            if judged is None:
                judged = score_together(self.held_out, scored.tokens, self.ranks)
                if self.ranks.leads:
                    journal.write_scores(path, scored.index, judged)
            self.state.held_out_scored += len(judged)
        log_ratio = (evidence.log_prob - evidence.log_prob_base).double().cpu().numpy()
        verdict = self.monitor.look(scored, judged, log_prob, log_ratio)
        metrics |= verdict.metrics
        if verdict.reasons:
            reason = f"monitor at step {step}: " + "; ".join(verdict.reasons)
            if self.ranks.leads:
                log.warning("%s. The last policy that passed is kept.", reason)
            return reason
        if self.ranks.leads:
            save_model(self.out / "good", self.policy, info=self._info())
        return None

    def _learn(
        self, scored: Scored, batch: TokenBatch, plan: Plan, evidence: Evidence, metrics: dict[str, float]
    ) -> UpdateHealth | None:
        """Update the policy, and add to the metrics; None when the batch gave nothing to learn from."""
        config = self.config
        baseline = MovingBaseline(config.baseline_decay, self.state.baseline)
        usable = torch.isfinite(evidence.log_prob) & torch.isfinite(evidence.log_prob_base)
        if config.algorithm == "sft":
            learnable = self.ranks.by_first(lambda: self.pool.add(self.state.step, scored))
            tokens = learnable.tokens
            metrics |= learnable.metrics
            self.state.scored += learnable.scored
            if not len(tokens):
                return None
            batch = TokenBatch.from_tokens(tokens, device=self.device)
            rng = np.random.default_rng([self.seed, self.state.step, 1])
            rows = rng.choice(len(tokens), min(config.batch_size, len(tokens)), replace=False)
            plan = self._plan(tokens, np.sort(rows))
            evidence = self._evidence_of(batch, plan)
        elif config.algorithm == "dpo":
            rows = preference_pairs(
                scored.scores.values, scored.tokens.spacegroup.astype(np.int64), usable.cpu().numpy()
            )
            if not len(rows):
                return None
            plan = self._plan(scored.tokens, rows, unit=2)
            evidence = self._evidence_of(batch, plan, evidence.reward)
        elif not bool(usable.all()):
            # A density that overflowed float32 under one of the models: the crystal cannot be learned from.
            rows = np.flatnonzero(usable.cpu().numpy())
            if len(rows) < 2:
                return None
            index = torch.from_numpy(rows).to(self.device)
            batch = batch[index]
            plan = self._plan(batch.to_tokens(), np.arange(len(rows)))
            evidence = self._evidence_of(batch, plan, evidence.reward[index])
        advantage = advantages(config, evidence, baseline)
        self.state.baseline = baseline.value
        self.engine.learning_rate = learning_rate(config, self.state.step)
        return improve(
            self.engine,
            batch,
            plan,
            evidence.log_prob,
            loss_of(config, evidence, advantage),
            passes=config.passes,
            clip=config.clip,
            kl_stop=config.kl_stop,
        )

    def _evidence_of(self, batch: TokenBatch, plan: Plan, reward: torch.Tensor | None = None) -> Evidence:
        """Log-probabilities of another cut of the batch, taken with exactly the pieces of its update."""
        log_prob = measure(self.policy, batch, plan, ranks=self.ranks).total
        reward = torch.zeros_like(log_prob) if reward is None else reward
        return Evidence(reward, batch.spacegroup, log_prob, self._base(batch, plan))


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Adam's rate for the batch of `step`.

    >>> [round(learning_rate(FinetuneConfig(learning_rate=1e-4, warmup_steps=4), step) * 1e4, 2) for step in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    """
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))


def _identity(
    config: FinetuneConfig, frozen: Any, reward: Reward, held_out: Reward | None, weights: np.ndarray, seed: int
) -> dict[str, Any]:
    """What defines the trajectory; JSON-able."""
    return {
        "seed": seed,
        "base": weights_hash(frozen),
        "reward": _version(reward),
        "held_out": None if held_out is None else _version(held_out),
        "spacegroups": {str(g + 1): float(w) for g, w in enumerate(weights) if w > 0},
        # The held-out judge is known by its version above: its files may move.
        "config": config.model_dump(mode="json", exclude=dict.fromkeys(EXTENT, True) | {"monitor": {"held_out"}}),
    }


def _version(reward: Reward) -> dict[str, str]:
    return {"name": reward.version.name, "digest": reward.version.digest}


def _extent(config: FinetuneConfig) -> dict[str, Any]:
    """How far a run was asked to go."""
    return {"steps": config.steps, "max_scored": config.max_scored, "max_seconds": config.max_seconds}


def _finished(out: Path, config: FinetuneConfig) -> FinetuneResult | None:
    """The result of a run that has already gone as far as asked, or that the monitor ended."""
    path = out / "result.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    asked = record.pop("asked")
    if asked != _extent(config) and not (record["stopped"] or "").startswith("monitor"):
        return None  # a finished run is asked to go further
    return FinetuneResult(**record | {"model_dir": out / record["model_dir"]})


def _cut_metrics(path: Path, step: int) -> dict[str, float]:
    """Drop the lines of steps that will be made again, and a line cut short by a kill; give the last that stays."""
    rows = [row for row in _rows(path) if row["step"] < step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The metrics of every step, up to a line that a kill cut short."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
