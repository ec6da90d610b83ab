"""Learning from crystals that nobody scored: drawn from the policy, judged by the guards and by a surrogate.

A step of `balance` with `surrogate` has its batch judged by the reward, fits the surrogate to all that were judged so
far, and then goes in waves: draw from the policy as it has become, refuse what the guards refuse, guess the rest, make
one pass with the loss of `balance`, whose constant ln Z is each space group's own (the groups are given, so one
constant for all would ask a poor group's crystals to be all less probable, which cannot be). What the guards say costs
nothing, so that each refused crystal is learned from: validity is learned as fast as crystals can be drawn.

The first wave is the judged batch itself, with its true rewards. Every draw follows from the seed and a number that
the run's state counts, so a step that is made again is the same.

Shapes: B crystals of a wave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64

from crystalforge.common.seeds import derived
from crystalforge.crystal.convert import to_crystals
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import Status
from crystalforge.rl import journal, losses
from crystalforge.rl.checkpoint import RunState
from crystalforge.rl.config import FinetuneConfig, SurrogateConfig
from crystalforge.rl.journal import Scored
from crystalforge.rl.policy import UpdateHealth, improve, make_plan, measure
from crystalforge.rl.rollout import Screen, Source, drawn_by_all, share_of
from crystalforge.rl.spacegroups import SpacegroupShares
from crystalforge.rl.surrogate import Surrogate, quality, rows_of
from crystalforge.training.engine import Engine


@dataclass(frozen=True, eq=False)
class Wave:
    """Crystals to learn from, what they are taken to be worth, and which the guards let pass."""

    tokens: Tokens
    reward: Float64[np.ndarray, " B"]
    passed: Bool[np.ndarray, " B"]


class Waves:
    """Makes the waves of one step after the other's. All ranks take part in everything."""

    def __init__(
        self,
        config: FinetuneConfig,
        settings: SurrogateConfig,
        folder: Path,
        source: Source,
        screen: Screen,
        engine: Engine,
        frozen: CrystalFormer,
    ) -> None:
        self._config, self._settings, self._folder, self._screen = config, settings, folder, screen
        self._engine, self._frozen, self._ranks = engine, frozen, engine.ranks
        self._source = replace(source, seed=derived(source.seed, "waves"), group_size=1)
        self._device = next(engine.model.parameters()).device
        self._surrogate, self._read = Surrogate(), False

    def learn(
        self, state: RunState, scored: Scored, shares: SpacegroupShares, rate: float, metrics: dict[str, float]
    ) -> UpdateHealth:
        """A step's learning: from the batch that was judged, then from the waves; moves the groups' shares.

        The rate falls over the step from `rate` to the part `fade` of it.
        """
        surrogate = self._surrogate = self._ranks.by_first(lambda: self._taught(state.step, scored, metrics))
        metrics |= self._ranks.share({name: metrics[name] for name in metrics if name.startswith("surrogate/")})
        count = 1 + (self._settings.waves if surrogate.ready else 0)
        fade = self._config.fade
        found: list[UpdateHealth] = []
        passed = 0.0
        for number, wave in enumerate(self._waves(state, scored, surrogate, shares, count)):
            begin, end = (1 - (1 - fade) * k / count for k in (number, number + 1))
            self._engine.learning_rate = rate * begin
            found.append(self._pass(state, wave, shares, end / begin))
            passed = float(wave.passed.mean())
        metrics |= {"surrogate/known": float(len(surrogate)), "surrogate/waves": float(count - 1)}
        metrics |= {"lesson/passed": passed, "spacegroups/kl": _divergence(shares)}
        return together(found)

    def _waves(
        self, state: RunState, scored: Scored, surrogate: Surrogate, shares: SpacegroupShares, count: int
    ) -> Iterator[Wave]:
        """The judged batch, then crystals of the policy as it is when each is asked for."""
        yield Wave(scored.tokens, scored.scores.values, ~scored.scores.refused)
        for _ in range(count - 1):
            size = self._settings.batch_size
            source = replace(self._source, weights=shares.shares)
            tokens, _ = drawn_by_all(self._engine.model, source, state.next_unscored, size, self._ranks)
            state.next_unscored += size
            own = share_of(self._ranks, size)
            mine = self._ranks.gather(self._guessed(tokens[own.start : own.stop], surrogate))
            reward = np.concatenate([part for part, _ in mine])
            yield Wave(tokens, reward, np.concatenate([passed for _, passed in mine]))

    def _guessed(
        self, tokens: Tokens, surrogate: Surrogate
    ) -> tuple[Float64[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """What the surrogate takes crystals for, and which pass; what is refused is worth the floor."""
        crystals = to_crystals(tokens, primitive=True)
        passed = self._screen(crystals) == Status.OK
        rows = np.flatnonzero(passed)
        reward = np.full(len(tokens), self._screen.floor)
        reward[rows] = surrogate.guess(rows_of(tokens[rows], [crystals[row] for row in rows.tolist()]))
        return reward, passed

    def _pass(self, state: RunState, wave: Wave, shares: SpacegroupShares, fade: float) -> UpdateHealth:
        """One pass over a wave, after the groups' worth was taken from it."""
        config, tokens = self._config, wave.tokens
        rng = np.random.default_rng([self._source.seed % 2**63, state.step, state.next_unscored])
        minibatches = max(1, round(len(tokens) / self._settings.minibatch))
        batch = TokenBatch.from_tokens(tokens, device=self._device)
        rows = np.arange(len(tokens))
        plan = make_plan(tokens.n_sites, rows, piece_tokens=config.piece_tokens, minibatches=minibatches, rng=rng)
        now = measure(self._engine.model, batch, plan, ranks=self._ranks).total
        base = measure(self._frozen, batch, plan, as_in_update=False, ranks=self._ranks).total
        worth = wave.reward if config.lowest is None else np.maximum(wave.reward, config.lowest)
        groups = tokens.spacegroup.astype(np.int64)
        shaped = worth - config.tau * (now - base).double().cpu().numpy()
        usable = np.flatnonzero(np.isfinite(shaped))
        shares.see(groups[usable], shaped[usable])
        target = base + torch.from_numpy((worth - shares.worth(groups)) / config.tau).to(base)
        target = target.clamp(now - losses.LARGEST_LOG_RATIO, now + losses.LARGEST_LOG_RATIO)
        if state.step or state.next_unscored:  # the base's own worth says little of what it will have become
            shares.move(config.tau, self._settings.spacegroup_rate)
        if len(usable) < len(tokens):  # a density overflowed: other pieces, and the log-probabilities that they give
            plan = make_plan(tokens.n_sites, usable, piece_tokens=config.piece_tokens, minibatches=minibatches, rng=rng)
            now = measure(self._engine.model, batch, plan, ranks=self._ranks).total
        return improve(
            self._engine, batch, plan, now, lambda rows, p: losses.balance(p, target[rows]),
            passes=1, clip=config.clip, fade=fade,
        )  # fmt: skip

    def _taught(self, step: int, scored: Scored, metrics: dict[str, float]) -> Surrogate:
        """The surrogate with this step's judged crystals, after it was asked what it takes them for."""
        surrogate = self._surrogate
        if not self._read:  # a new session begins with what earlier ones had judged
            for _, earlier in journal.steps(self._folder, before=step):
                surrogate.add(*_judged(earlier))
            if step:
                surrogate.fit(self._config.lowest)
        self._read = True
        rows, reward = _judged(scored)
        if surrogate.ready:
            lowest = -np.inf if self._config.lowest is None else self._config.lowest
            metrics |= quality(surrogate.guess(rows), np.maximum(reward, lowest))
        surrogate.add(rows, reward)
        surrogate.fit(self._config.lowest)
        return surrogate


def _judged(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and rewards of the crystals that the reward was asked for."""
    rows = np.flatnonzero(~scored.scores.refused)
    return rows_of(scored.tokens[rows]), scored.scores.values[rows]


def _divergence(shares: SpacegroupShares) -> float:
    """KL of the groups' law to the base's, nats."""
    law = shares.shares
    groups = np.flatnonzero(law) + 1
    return float(law[groups - 1] @ shares.log_ratio(groups))


def together(parts: list[UpdateHealth]) -> UpdateHealth:
    """The health of several updates in a row as that of one."""
    steps = sum(part.optimizer_steps for part in parts)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.optimizer_steps for part in parts) / max(steps, 1)

    return UpdateHealth(
        loss=mean("loss"),
        first_ratio_error=parts[0].first_ratio_error,
        approx_kl=mean("approx_kl"),
        clip_fraction=mean("clip_fraction"),
        largest_ratio=max(part.largest_ratio for part in parts),
        gradient_norm=mean("gradient_norm"),
        optimizer_steps=steps,
        skipped_steps=sum(part.skipped_steps for part in parts),
        stopped_early=any(part.stopped_early for part in parts),
    )
