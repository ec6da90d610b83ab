"""What keeps a policy from drifting to where its reward means nothing, or to a few crystals again and again.

A reward that is maximised is also searched for its weak places, and the price of leaving the base alone does not close
all of them. Each of these is a switch (`DriftConfig`), off by default; they change what is learned, never what is
recorded:

- abstain: a chemical system with too few known phases (`Status.SPARSE_HULL`) can be judged neither good nor bad. At the
  reward's floor it is punished for being unknown; without the demand it is rewarded for having no competitors.
- compositions, structures: a formula, or a formula prototype (space group, and which Wyckoff letters share an element),
  that came n times before in the batch and the run is worth beta tau ln(1 + n) less. The odds that the policy aims at
  are divided by (1 + n)^beta: a law that has settled is (p_base exp(r/tau))^(1 / (1 + beta)), normalised.
- coverage: the objective less coverage tau [KL(elements) + KL(number of elements)], the divergences of the two marginal
  laws from those of the first step's crystals, which are the base's. What is added to a crystal's reward is the
  gradient: minus the logarithm by which its number of elements, and its elements on average, are more common now.

All follows from the journal, so a run that is taken up goes on with the same bits; every rank knows it.

Shapes: B crystals of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from crystalforge.crystal.keys import composition_keys, element_counts, prototype_keys
from crystalforge.crystal.tokens import Tokens
from crystalforge.rewards.protocol import Status
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.journal import Scored
from crystalforge.training.ranks import ALONE, Ranks

PSEUDO = 5.0
"""Crystals added to both sides of a ratio of counts: an element that was never drawn and now is, once, says little."""


@dataclass(frozen=True, eq=False)
class Worth:
    """What a step's crystals are learned as. counts: False where nothing is to be learned from a crystal."""

    reward: Float64[np.ndarray, " B"]
    counts: Bool[np.ndarray, " B"]
    metrics: dict[str, float]


class Drift:
    """The worth of one step's crystals after the other's. Every rank must ask, in the order of steps."""

    def __init__(self, config: FinetuneConfig, folder: Path, ranks: Ranks = ALONE) -> None:
        self._config, self._tau, self._folder, self._ranks = config.drift, config.tau, folder, ranks
        self._known: dict[int, Worth] = {}
        self._next = 0
        self._repeats = (
            Repeats(self._config.compositions, lambda tokens: composition_keys(element_counts(tokens))),
            Repeats(self._config.structures, prototype_keys),
        )
        self._coverage = Coverage(self._config.coverage)

    def worth(self, step: int, scored: Scored) -> Worth:
        """What the crystals of `step` are worth, or were when they were new."""
        if self._config.looks_back and self._next < step:  # a new session
            earlier = self._ranks.by_first(lambda: list(journal.steps(self._folder, before=step)))
            for number, then in earlier:
                self._known[number] = self._of(then)
            self._next = step
        if step not in self._known:
            self._known[step] = self._of(scored)
            self._next = step + 1
        return self._known[step]

    def _of(self, scored: Scored) -> Worth:
        scores = scored.scores
        rows = np.flatnonzero(scores.ok)
        tokens = scored.tokens[rows]
        metrics: dict[str, float] = {}
        change = np.zeros(len(rows))
        for name, part in zip(("compositions", "structures"), self._repeats, strict=True):
            if part.strength:
                less = part.of(tokens)
                change -= less
                metrics[f"drift/{name}"] = self._tau * float(less.mean()) if len(less) else 0.0
        if self._coverage.strength:
            more, metrics["drift/coverage_kl"] = self._coverage.of(tokens)
            change += more
        reward = scores.values.copy()
        reward[rows] += self._tau * change
        counts = np.ones(len(scored), dtype=bool)
        if self._config.abstain:
            counts = scores.status != Status.SPARSE_HULL
            metrics["drift/abstained"] = float(1 - counts.mean())
        return Worth(reward, counts, metrics)


class Repeats:
    """How often each crystal's `key` has come before."""

    def __init__(self, strength: float, keys: Callable[[Tokens], UInt64[np.ndarray, " B"]]) -> None:
        self.strength, self._keys = strength, keys
        self._seen: Counter[int] = Counter()

    def of(self, tokens: Tokens) -> Float64[np.ndarray, " B"]:
        """strength ln(1 + n), with n the earlier crystals of the same key; these are counted in."""
        found = np.zeros(len(tokens))
        for row, key in enumerate(self._keys(tokens).tolist()):
            found[row] = self._seen[key]
            self._seen[key] += 1
        return self.strength * np.log1p(found)


class Coverage:
    """How much more common than at first a crystal's number of elements and its elements are."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._first: tuple[np.ndarray, ...] | None = None

    def of(self, tokens: Tokens) -> tuple[Float64[np.ndarray, " B"], float]:
        """-strength ln(share now / share at first), of the number of elements plus the mean over the elements; and the
        sum of the two divergences, nats.
        """
        if not len(tokens):
            return np.zeros(0), 0.0
        features = marginals(tokens)
        sums = tuple(feature.sum(axis=0) for feature in features)
        if self._first is None:
            self._first = sums
        change, divergence = np.zeros(len(tokens)), 0.0
        for feature, now, first in zip(features, sums, self._first, strict=True):
            scale = first.sum() / now.sum()
            log_ratio = np.log((now * scale + PSEUDO) / (first + PSEUDO))
            change -= self.strength * feature @ log_ratio
            divergence += float(now @ log_ratio / now.sum())
        return change, divergence


def marginals(tokens: Tokens) -> tuple[Float64[np.ndarray, "B N"], Float64[np.ndarray, "B Z"]]:
    """Of each crystal the number of its elements, one-hot, and its elements, which share one whole between them."""
    present = np.zeros((len(tokens), 119), dtype=bool)
    np.put_along_axis(present, tokens.element.astype(np.int64), True, axis=1)
    present[:, 0] = False
    count = present.sum(axis=1)
    kinds = np.zeros((len(tokens), tokens.element.shape[1] + 1))
    kinds[np.arange(len(tokens)), count] = 1
    return kinds, present / np.maximum(count, 1)[:, None]
