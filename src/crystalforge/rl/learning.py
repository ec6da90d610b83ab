"""One step's learning: from which crystals, by which loss, over how many passes.

Shapes: B crystals of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.likelihood import LogProb
from crystalforge.model.network import CrystalFormer
from crystalforge.rl.advantage import MovingBaseline
from crystalforge.rl.algorithms import Evidence, advantages, loss_of, preference_pairs
from crystalforge.rl.checkpoint import RunState
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.drift import Drift
from crystalforge.rl.journal import Scored
from crystalforge.rl.kept import Kept, Lesson
from crystalforge.rl.policy import Plan, UpdateHealth, improve, make_plan, measure
from crystalforge.rl.supervised import Pool
from crystalforge.training.engine import Engine

Values = Tensor | np.ndarray


@dataclass(frozen=True, eq=False)
class Seen:
    """The crystals of a step as tensors, the pieces that they are passed in, and what both models say of them."""

    batch: TokenBatch
    plan: Plan
    log_prob: LogProb
    evidence: Evidence


class Learner:
    """Improves the policy by one step's crystals after the other.

    seed: of shuffling, and of what is taken from earlier steps. All ranks take part in everything.
    """

    def __init__(
        self, config: FinetuneConfig, out: Path, seed: int, engine: Engine, frozen: CrystalFormer, pool: Pool
    ) -> None:
        self.config, self.seed, self.engine, self.frozen, self.pool = config, seed, engine, frozen, pool
        self.policy, self.ranks = engine.model, engine.ranks
        self.device = next(self.policy.parameters()).device
        self.drift = Drift(config, out / "samples", self.ranks)
        self.kept = Kept(out / "samples", self._lesson_again, self.ranks)

    def see(self, step: int, scored: Scored) -> Seen:
        """Measure a step's crystals, before anything is learned from them."""
        batch = TokenBatch.from_tokens(scored.tokens, device=self.device)
        plan = self._plan(step, scored.tokens, np.arange(len(scored)))
        log_prob = measure(self.policy, batch, plan, ranks=self.ranks)
        reward = torch.from_numpy(self.drift.worth(step, scored).reward).to(self.device, log_prob.total.dtype)
        return Seen(batch, plan, log_prob, Evidence(reward, batch.spacegroup, log_prob.total, self._base(batch, plan)))

    def learn(self, state: RunState, scored: Scored, seen: Seen, metrics: dict[str, float]) -> UpdateHealth | None:
        """Update the policy, and add to the metrics; None when the batch gave nothing to learn from."""
        config, step, evidence = self.config, state.step, seen.evidence
        baseline = MovingBaseline(config.baseline_decay, state.baseline)
        worth = self.drift.worth(step, scored)
        metrics |= worth.metrics
        usable = torch.isfinite(evidence.log_prob) & torch.isfinite(evidence.log_prob_base)
        usable &= torch.from_numpy(worth.counts).to(self.device)
        batch, plan = seen.batch, seen.plan
        if config.algorithm == "balance":
            fresh = self._lesson(step, scored, evidence.log_prob_base)
            older = self.kept.take(step, config.kept, np.random.default_rng([self.seed, step, 1]))
            self.kept.add(step, fresh)
            lesson = fresh if older is None else fresh.and_more(older)
            metrics |= {"lesson/fresh": float(len(fresh)), "lesson/kept": float(len(lesson) - len(fresh))}
            if len(lesson) < 2:
                return None
            batch = TokenBatch.from_tokens(lesson.tokens, device=self.device)
            plan = self._plan(step, lesson.tokens, np.arange(len(lesson)))
            evidence = self._evidence(batch, plan, lesson.reward, lesson.log_prob_base)
        elif config.algorithm == "sft":
            learnable = self.ranks.by_first(lambda: self.pool.add(step, scored))
            tokens = learnable.tokens
            metrics |= learnable.metrics
            state.scored += learnable.scored
            if not len(tokens):
                return None
            batch = TokenBatch.from_tokens(tokens, device=self.device)
            rng = np.random.default_rng([self.seed, step, 1])
            rows = rng.choice(len(tokens), min(config.batch_size, len(tokens)), replace=False)
            plan = self._plan(step, tokens, np.sort(rows))
            evidence = self._evidence(batch, plan)
        elif config.algorithm == "dpo":
            groups = scored.tokens.spacegroup.astype(np.int64)
            rows = preference_pairs(worth.reward, groups, usable.cpu().numpy())
            if not len(rows):
                return None
            plan = self._plan(step, scored.tokens, rows, unit=2)
            evidence = self._evidence(batch, plan, evidence.reward)
        elif not bool(usable.all()):
            # Nothing can be learned from a density that overflowed float32 under one of the models, or from what counts
            # for nothing.
            rows = np.flatnonzero(usable.cpu().numpy())
            if len(rows) < 2:
                return None
            index = torch.from_numpy(rows).to(self.device)
            batch = batch[index]
            plan = self._plan(step, batch.to_tokens(), np.arange(len(rows)))
            evidence = self._evidence(batch, plan, evidence.reward[index])
        advantage = advantages(config, evidence, baseline)
        state.baseline = baseline.value
        self.engine.learning_rate = learning_rate(config, step)
        return improve(
            self.engine,
            batch,
            plan,
            evidence.log_prob,
            loss_of(config, evidence, advantage),
            passes=config.passes,
            clip=config.clip,
            kl_stop=config.kl_stop,
            fade=config.fade,
        )

    def _plan(self, step: int, tokens: Tokens, rows: np.ndarray, unit: int = 1) -> Plan:
        config = self.config
        return make_plan(
            tokens.n_sites,
            rows,
            piece_tokens=config.piece_tokens,
            minibatches=config.minibatches,
            unit=unit,
            rng=np.random.default_rng([self.seed, step]),
        )

    def _base(self, batch: TokenBatch, plan: Plan) -> Tensor:
        return measure(self.frozen, batch, plan, as_in_update=False, ranks=self.ranks).total

    def _evidence(
        self, batch: TokenBatch, plan: Plan, reward: Values | None = None, base: Values | None = None
    ) -> Evidence:
        """Log-probabilities of another cut of crystals, taken with exactly the pieces of its update."""
        log_prob = measure(self.policy, batch, plan, ranks=self.ranks).total

        def known(values: Values) -> Tensor:
            return torch.as_tensor(values).to(self.device, log_prob.dtype)

        worth = torch.zeros_like(log_prob) if reward is None else known(reward)
        return Evidence(worth, batch.spacegroup, log_prob, self._base(batch, plan) if base is None else known(base))

    def _lesson(self, step: int, scored: Scored, log_prob_base: Tensor) -> Lesson:
        """What a step's crystals teach: all that were judged, and some of those that were refused."""
        base, worth = log_prob_base.double().cpu().numpy(), self.drift.worth(step, scored)
        usable = np.isfinite(base) & worth.counts
        refused = np.flatnonzero(scored.scores.refused & usable) if self.config.filter else np.zeros(0, int)
        judged = np.flatnonzero(usable & ~(scored.scores.refused & self.config.filter))
        rng = np.random.default_rng([self.seed, step, 2])
        some = rng.choice(refused, min(len(refused), round(self.config.refused * len(judged))), replace=False)
        rows = np.sort(np.concatenate([judged, some])).astype(np.int64)
        return Lesson(scored.tokens[rows], worth.reward[rows], base[rows])

    def _lesson_again(self, step: int, scored: Scored) -> Lesson:
        """The lesson of an earlier session's step."""
        batch = TokenBatch.from_tokens(scored.tokens, device=self.device)
        plan = self._plan(step, scored.tokens, np.arange(len(scored)))
        return self._lesson(step, scored, self._base(batch, plan))


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Adam's rate for the batch of `step`.

    >>> [round(learning_rate(FinetuneConfig(learning_rate=1e-4, warmup_steps=4), step) * 1e4, 2) for step in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    """
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
