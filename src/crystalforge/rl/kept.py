"""Everything that was scored, to be learned from again.

The squared error of `losses.balance` holds for crystals of any law, so nothing that was paid for need be thrown away.
A run's journal is the store: a new session reads it back, and asks the base for log-probabilities in the same
pieces as before, so that they are the same bits.

Shapes: N crystals kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal.tokens import Tokens
from crystalforge.rl import journal
from crystalforge.rl.journal import Scored
from crystalforge.training.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Lesson:
    """Crystals to learn from: what they are worth, and their log-probability under the base (nats)."""

    tokens: Tokens
    reward: Float64[np.ndarray, " N"]
    log_prob_base: Float64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: Int64[np.ndarray, " n"]) -> Lesson:
        return Lesson(self.tokens[rows], self.reward[rows], self.log_prob_base[rows])

    def and_more(self, other: Lesson) -> Lesson:
        """These, then those of `other`."""
        return Lesson(
            Tokens.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.reward, other.reward]),
            np.concatenate([self.log_prob_base, other.log_prob_base]),
        )


Teach = Callable[[int, Scored], Lesson]  # what a step's crystals teach


class Kept:
    """The lessons of all earlier steps."""

    def __init__(self, folder: Path, teach: Teach, ranks: Ranks = ALONE) -> None:
        self._folder, self._teach, self._ranks = folder, teach, ranks
        self._lessons: list[Lesson] | None = None

    def take(self, step: int, count: int, rng: np.random.Generator) -> Lesson | None:
        """`count` crystals of the steps before `step` (or all), at random; None when there are none.

        Every rank must ask.
        """
        lessons = self._all(step)
        sizes = np.array([len(lesson) for lesson in lessons], dtype=np.int64)
        total = int(sizes.sum())
        if total == 0 or count == 0:
            return None
        ends = np.cumsum(sizes)
        chosen = np.sort(rng.choice(total, min(count, total), replace=False))
        owner = np.searchsorted(ends, chosen, side="right")
        parts = [lessons[k][chosen[owner == k] - (ends[k] - sizes[k])] for k in np.unique(owner)]
        found = parts[0]
        for part in parts[1:]:
            found = found.and_more(part)
        return found

    def add(self, step: int, lesson: Lesson) -> None:
        """Remember what the crystals of `step` taught."""
        self._all(step).append(lesson)

    def _all(self, step: int) -> list[Lesson]:
        if self._lessons is None:  # a new session begins with what earlier ones scored
            earlier = self._ranks.by_first(lambda: list(journal.steps(self._folder, before=step)))
            self._lessons = [self._teach(number, scored) for number, scored in earlier]
        return self._lessons
