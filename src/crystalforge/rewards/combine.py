"""Rewards made of rewards: composites and ensembles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.rewards.base import Judgement
from crystalforge.rewards.config import CompositeReward
from crystalforge.rewards.protocol import Reward, Scores, Status


class _Parts:
    """Scores several rewards; a crystal that one of them floors is floored, with that one's status."""

    elements: frozenset[int] | None = None  # each part checks its own

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = list(rewards)
        names = [reward.version.name for reward in rewards]
        self._names = [
            name if names.count(name) == 1 else f"{name}{names[:place].count(name) + 1}"
            for place, name in enumerate(names)
        ]
        self.digests = {
            f"{place}:{name}": reward.version.digest
            for place, (name, reward) in enumerate(zip(self._names, rewards, strict=True))
        }

    def _score(self, crystals: Sequence[Crystal]) -> tuple[Float64[np.ndarray, "B K"], np.ndarray, dict]:
        scores = [reward.score(crystals) for reward in self._rewards]
        status = np.full(len(crystals), Status.OK, dtype=np.int32)
        for part in reversed(scores):
            status = np.where(part.status != Status.OK, part.status, status).astype(np.int32)
        components = {name: part.values for name, part in zip(self._names, scores, strict=True)}
        for name, part in zip(self._names, scores, strict=True):
            components |= {f"{name}.{key}": values for key, values in part.components.items()}
        return np.stack([part.values for part in scores], axis=1), status, components

    def _component_names(self) -> tuple[str, ...]:
        # Asked of an empty batch, so that the parts need no second declaration.
        empty: list[Scores] = [reward.score([]) for reward in self._rewards]
        inner = [f"{name}.{key}" for name, part in zip(self._names, empty, strict=True) for key in part.components]
        return (*self._names, *inner)


class CompositeJudge(_Parts):
    """See `CompositeReward`."""

    def __init__(self, config: CompositeReward, rewards: Sequence[Reward]) -> None:
        super().__init__(rewards)
        self._config = config
        self.component_names = self._component_names()

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        parts, status, components = self._score(crystals)
        return Judgement(scalarise(self._config, parts), status, components)


def scalarise(config: CompositeReward, parts: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
    """One number of several; see `CompositeReward` for the formulas."""
    weights = np.array([term.weight for term in config.terms])
    match config.how:
        case "sum":
            return parts @ weights
        case "product":
            return np.prod(np.maximum(parts, 0.0) ** weights, axis=1)
        case "chebyshev":
            short = weights * (np.array([term.ideal for term in config.terms]) - parts)
            return -short.max(axis=1) - config.augmentation * short.sum(axis=1)
        case "lexicographic":
            value, reached = np.zeros(len(parts)), np.ones(len(parts), dtype=bool)
            for column, term in enumerate(config.terms):
                limit = np.inf if term.satisfied is None else term.satisfied
                # A part not yet reached counts as its worst, so that reaching it can never cost anything.
                gained = np.where(reached, np.minimum(parts[:, column], limit), term.reward.floor)
                value += term.weight * gained
                reached &= parts[:, column] >= limit
            return value


class EnsembleJudge(_Parts):
    """Mean minus k times the population standard deviation of the members."""

    def __init__(self, k: float, rewards: Sequence[Reward]) -> None:
        super().__init__(rewards)
        self._k = k
        self.component_names = ("mean", "disagreement", *self._component_names())

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        parts, status, components = self._score(crystals)
        mean, spread = parts.mean(axis=1), parts.std(axis=1)
        return Judgement(mean - self._k * spread, status, {"mean": mean, "disagreement": spread, **components})
