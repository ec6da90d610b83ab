"""A quick guess of the reward, learned from the crystals that a run has had scored.

What limits learning is not how many crystals were judged but how many the policy saw: a few thousand rewards suffice
for trees on a crystal's descriptors to say most of what the reward says (of M3GNet's E_hull of `mp20`'s crystals 0.59
of the variance from 1,000, 0.70 from 5,120: `benchmarks/surrogate.py`), and with their guess any number of further
crystals can be learned from for the price of drawing them. The guess is never recorded as a reward; every step has
fresh crystals judged by the reward itself, which correct it where the policy has gone, and say how far off it was there
(`surrogate/...` in the metrics).

Gradient-boosted trees (scikit-learn's), because they fit in seconds, take descriptors of any scale, and cannot
extrapolate: nothing is ever guessed to be better than the best that was judged.

Shapes: B crystals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from crystalforge.common.errors import missing_extra
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals
from crystalforge.crystal.descriptors import descriptors
from crystalforge.crystal.tokens import Tokens

FEWEST = 50  # judged crystals below which nothing is guessed
TREES: dict[str, Any] = {
    "max_iter": 300, "learning_rate": 0.06, "max_leaf_nodes": 31, "min_samples_leaf": 15, "l2_regularization": 1.0,
    "early_stopping": False, "random_state": 0,
}  # fmt: skip


def rows_of(tokens: Tokens, crystals: Sequence[Crystal | None] | None = None) -> Float32[np.ndarray, "B F"]:
    """Descriptors of token crystals that have passed the guards; crystals: their primitive cells, where at hand."""
    built = to_crystals(tokens, primitive=True) if crystals is None else crystals
    whole = [crystal for crystal in built if crystal is not None]
    assert len(whole) == len(tokens), "what cannot be built does not pass a guard"
    return descriptors(whole, tokens.spacegroup.astype(np.int64), tokens.n_sites.astype(np.int64))


class Surrogate:
    """Learns with `add` and `fit`, guesses with `guess`. The same data give the same trees, bit for bit."""

    def __init__(self) -> None:
        try:  # before anything is paid for
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError as error:
            raise missing_extra("scikit-learn", "training", error) from None
        self._make = partial(HistGradientBoostingRegressor, **TREES)
        self._rows: list[Float32[np.ndarray, "B F"]] = []
        self._rewards: list[Float64[np.ndarray, " B"]] = []
        self._trees: Any = None
        self._low = self._high = 0.0

    def __len__(self) -> int:
        """Judged crystals that it knows."""
        return sum(len(part) for part in self._rewards)

    @property
    def ready(self) -> bool:
        """Whether it was fitted."""
        return self._trees is not None

    def add(self, rows: Float32[np.ndarray, "B F"], reward: Float64[np.ndarray, " B"]) -> None:
        """Remember what was judged."""
        self._rows.append(rows)
        self._rewards.append(reward)

    def fit(self, lowest: float | None) -> None:
        """Learn from all that was added; rewards below `lowest` are learned as that. Nothing happens below `FEWEST`."""
        if len(self) < FEWEST:
            return
        rewards = np.concatenate(self._rewards)
        if lowest is not None:
            rewards = np.maximum(rewards, lowest)
        self._low, self._high = float(rewards.min()), float(rewards.max())
        self._trees = self._make().fit(np.concatenate(self._rows), rewards)

    def guess(self, rows: Float32[np.ndarray, "B F"]) -> Float64[np.ndarray, " B"]:
        """Rewards of crystals, between the least and the greatest that were judged."""
        assert self._trees is not None, "fit first"
        if not len(rows):
            return np.zeros(0)
        return np.clip(self._trees.predict(rows).astype(np.float64), self._low, self._high)


def quality(guess: Float64[np.ndarray, " B"], reward: Float64[np.ndarray, " B"]) -> dict[str, float]:
    """How good guesses made beforehand were: mean error, mean absolute error, correlation."""
    if len(reward) < 2:
        return {}
    found = {
        "surrogate/bias": float((guess - reward).mean()),
        "surrogate/error": float(np.abs(guess - reward).mean()),
    }
    if guess.std() > 0 and reward.std() > 0:
        found["surrogate/correlation"] = float(np.corrcoef(guess, reward)[0, 1])
    return found
