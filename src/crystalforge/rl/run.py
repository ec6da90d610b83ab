"""The moving parts of one session of fine-tuning: draw, score, look, learn, save.

Under several ranks each draws and scores its share of a step's crystals and takes its share of the gradient. All of
them know the whole scored batch, so baseline, KL, statistics and the monitor's verdict are the same everywhere without
further talk; the first rank reads and writes, and its clock counts. A crystal is the same whichever rank draws it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from crystalforge.common.files import write_json
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.shares import TILT, tilt_of
from crystalforge.rewards.protocol import Reward
from crystalforge.rl import checkpoint, journal, record
from crystalforge.rl.checkpoint import RunState
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.health import Attained, objective_health, rollout_health, update_health
from crystalforge.rl.journal import Scored
from crystalforge.rl.learning import Learner, Seen, learning_rate
from crystalforge.rl.monitor import IsKnown, Monitor, conclusion, keeps_best
from crystalforge.rl.pareto import ParetoSet
from crystalforge.rl.record import FinetuneResult
from crystalforge.rl.rollout import Screen, Source, roll_out, score_together
from crystalforge.rl.spacegroups import SpacegroupShares
from crystalforge.rl.supervised import Pool, Relaxer
from crystalforge.rl.waves import Waves
from crystalforge.training.engine import Engine

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What a session holds; `finetune` calls its parts."""

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
    screen: Screen | None
    state: RunState

    def __post_init__(self) -> None:
        self.policy, self.ranks = self.engine.model, self.engine.ranks
        self.monitor = Monitor(self.config.monitor, self.config.tau, self.state.monitor)
        self.pareto = ParetoSet(self.config.pareto, self.out) if self.config.pareto else None
        pool = Pool(self.config, self.out, self.reward, self.relaxer)
        self.shares = SpacegroupShares.of(self.source.weights, self.state.spacegroups)
        self.learner = Learner(self.config, self.out, self.seed, self.engine, self.frozen, pool)
        self.waves = None
        if self.config.surrogate is not None:
            assert self.screen is not None, "checked before a run is made"
            self.waves = Waves(
                self.config,
                self.config.surrogate,
                self.out / "samples",
                self.source,
                self.screen,
                self.engine,
                self.frozen,
            )
        self.attained = Attained.of(self.state.attained)

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
            self.source if self.waves is None else replace(self.source, weights=self.shares.shares),
            self.reward,
            step=state.step,
            first_index=state.next_index,
            count=config.batch_size,
            folder=self.out / "samples",
            ranks=self.ranks,
            screen=self.screen if config.filter else None,
        )
        scored = rollout.scored
        at = time.perf_counter()
        seen = self.learner.see(state.step, scored)
        measured = time.perf_counter()
        ratio = self._log_ratio(scored, seen)
        metrics = rollout_health(scored, seen.log_prob, ratio, self.is_known)
        metrics |= objective_health(config, scored, ratio, self.attained)
        if self.pareto is not None:
            pareto = self.pareto
            metrics |= self.ranks.by_first(lambda: pareto.add(state.step, scored))
        stopped = self._look(scored, seen, ratio, metrics)
        looked = time.perf_counter()
        if stopped is None:
            if self.waves is None:
                metrics |= update_health(self.learner.learn(state, scored, seen, metrics))
            else:
                rate = learning_rate(config, state.step)
                metrics |= update_health(self.waves.learn(state, scored, self.shares, rate, metrics))
            state.step += 1
            state.next_index += len(scored)
            state.scored += int((~scored.scores.refused).sum()) if config.filter else len(scored)
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
        self.state.monitor, self.state.attained = self.monitor.memory(), self.attained.memory()
        self.state.spacegroups = self.shares.memory()
        checkpoint.save(self.out / "checkpoints", self.engine, self.state, keep=self.config.keep_checkpoints)

    def finish(self, identity: dict[str, Any], stopped: str | None, metrics: dict[str, float]) -> FinetuneResult:
        """Write the tuned model and the result. A run that the monitor stopped gives its last good policy, or that of
        the best objective where the objective was the reason.
        """
        distrusted = stopped is not None and stopped.startswith("monitor")
        if not distrusted:
            self.save()
        return self.ranks.by_first(lambda: self._write_result(identity, stopped, metrics, distrusted))

    def _write_result(
        self, identity: dict[str, Any], stopped: str | None, metrics: dict[str, float], distrusted: bool
    ) -> FinetuneResult:
        policy, info = self._delivered(), self._info()
        if distrusted:
            place = self.out / ("best" if keeps_best(stopped or "") else "good")
            earlier = load_model(place) if place.exists() else None
            policy = self.frozen if earlier is None else earlier.model
            shares = SpacegroupShares(self.source.weights)
            if earlier is not None:
                shares.tilt = tilt_of(earlier.info)
            info |= _asking(shares)
        info |= {"stopped": stopped, "identity": identity}
        save_model(self.out / "model", policy, info=info)
        judged_by = None if self.held_out is None else str(self.held_out.version)
        looks = conclusion(record.rows(self.out / record.METRICS), stopped, held_out=judged_by)
        result = FinetuneResult(
            self.out / "model", self.state.step, stopped, self.state.scored, dict(self.state.seconds), metrics, looks
        )
        asked = record.extent(self.config)
        write_json(self.out / record.RESULT, asdict(result) | {"model_dir": "model", "asked": asked})
        return result

    def _info(self) -> dict[str, Any]:
        """What a model says of itself: space groups are asked of it as they were asked of it here."""
        return {"kind": "finetune", "steps": self.state.step} | _asking(self.shares)

    def _delivered(self) -> CrystalFormer:
        """The policy as it would be handed over now: with the weights' moving average, where one is kept."""
        if not self.config.average:
            return self.policy
        averaged = CrystalFormer(self.policy.config)
        averaged.load_state_dict(self.engine.averaged_state())
        return averaged.eval()

    def _log_ratio(self, scored: Scored, seen: Seen) -> Float64[np.ndarray, " B"]:
        """ln(p/p_base) of a step's crystals, nats, the choice of the space group included."""
        given = (seen.evidence.log_prob - seen.evidence.log_prob_base).double().cpu().numpy()
        return given + self.shares.log_ratio(scored.tokens.spacegroup.astype(np.int64))

    def _look(
        self, scored: Scored, seen: Seen, log_ratio: Float64[np.ndarray, " B"], metrics: dict[str, float]
    ) -> str | None:
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
        verdict = self.monitor.look(scored, judged, seen.log_prob, log_ratio)
        metrics |= verdict.metrics
        if verdict.reasons:
            reason = f"monitor at step {step}: " + "; ".join(verdict.reasons)
            if self.ranks.leads:
                which = "of the best objective" if keeps_best(reason) else "that passed last"
                log.warning("%s. The policy %s is kept.", reason, which)
            return reason
        if self.ranks.leads:
            kept = ("good", "best") if verdict.best else ("good",)
            for place in kept:
                save_model(self.out / place, self._delivered(), info=self._info())
        return None


def _asking(shares: SpacegroupShares) -> dict[str, Any]:
    """What a model says of the space groups that it is asked for; the tilt only where there is one."""
    asking = {"spacegroup_weights": shares.shares.tolist()}
    return asking | ({TILT: shares.tilt.tolist()} if shares.tilt.any() else {})
