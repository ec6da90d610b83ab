"""The best compromises seen in a run: crystals that no other one beats in every property at once.

A scalar reward forgets how it was reached; the Pareto set of the reward's components, over everything that a run has
scored, is what a chemist chooses from. It lies in `out/pareto.parquet` (columns as in `journal`; the number of a
crystal says when it was drawn) and is rebuilt from `out/samples` when a run goes on.

Shapes: B crystals, K properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from crystalforge.common.errors import InputError
from crystalforge.rewards.protocol import Scores
from crystalforge.rl import journal
from crystalforge.rl.journal import Scored, join, pick

Sense = Literal["max", "min"]
FILE = "pareto.parquet"


class ParetoSet:
    """Crystals of a run that are not dominated in the named components; one of each kind of material."""

    def __init__(self, wanted: Mapping[str, Sense], out: Path) -> None:
        self._wanted, self._out = dict(wanted), out
        self._front: Scored | None = None
        self._begun = False

    def add(self, step: int, scored: Scored) -> dict[str, float]:
        """Take the crystals of `step` into account; gives how many the set holds and how many are new in it.

        Raises InputError when the reward has no component of a wanted name.
        """
        if not self._begun:  # a new session begins with what earlier ones saw
            for _, earlier in journal.steps(self._out / "samples", before=step):
                self._merge(earlier)
            self._begun = True
        self._merge(scored)
        size = 0 if self._front is None else len(self._front)
        new = 0 if self._front is None else int(np.isin(self._front.index, scored.index).sum())
        if self._front is not None and (new or not (self._out / FILE).exists()):
            journal.write(self._out / FILE, step, self._front)
        return {"pareto/size": float(size), "pareto/new": float(new)}

    def _merge(self, scored: Scored) -> None:
        gains = objectives(self._wanted, scored.scores)
        rows = np.flatnonzero(scored.scores.ok & np.isfinite(gains).all(axis=1))
        if not len(rows):
            return
        found = pick(scored, rows)
        pool = found if self._front is None else join([self._front, found])
        gains = objectives(self._wanted, pool.scores)
        pool = pick(pool, np.flatnonzero(non_dominated(gains)))
        # Of copies of one material with equal values the first seen stays.
        keys = journal.material_keys(pool.tokens)
        values = objectives(self._wanted, pool.scores)
        first: dict[tuple[bytes, bytes], int] = {}
        for place, (key, row) in enumerate(zip(keys, values, strict=True)):
            first.setdefault((key, row.tobytes()), place)
        self._front = pick(pool, np.array(list(first.values()), dtype=np.int64))


def objectives(wanted: Mapping[str, Sense], scores: Scores) -> Float64[np.ndarray, "B K"]:
    """The named components, each so that more is better."""
    if missing := sorted(set(wanted) - set(scores.components)):
        raise InputError(
            f"the reward has no component {missing[0]!r}; it has {sorted(scores.components)}",
            source="finetune.pareto",
            remedy="name its components",
        )
    return np.stack([scores.components[name] * (1 if sense == "max" else -1) for name, sense in wanted.items()], axis=1)


def non_dominated(gains: Float64[np.ndarray, "B K"]) -> Bool[np.ndarray, " B"]:
    """Rows than which no other is at least as good in everything and better in something; more is better.

    Best first by the sum: a row can only be dominated by one of a greater sum, so each is held against the front alone.

    >>> non_dominated(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.4, 0.4]])).tolist()
    [True, True, True, False]
    """
    keep = np.zeros(len(gains), dtype=bool)
    front = np.empty((0, gains.shape[1]))
    for row in np.argsort(-gains.sum(axis=1), kind="stable"):
        better = (front >= gains[row]).all(axis=1) & (front > gains[row]).any(axis=1)
        if not better.any():
            keep[row] = True
            front = np.vstack([front, gains[row]])
    return keep
