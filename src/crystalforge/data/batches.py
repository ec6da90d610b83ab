"""Which rows go into which batch: a pure function of (seed, epoch), so that a cursor resumes it exactly.

Sequences of one batch are cut to its longest crystal, hence rows of similar length are put together: within pools of
`POOL` batches of the shuffled epoch rows are sorted by their number of sites, cut into batches, and the batches
are shuffled again. With several `groups` a batch is made of as many runs of rows of similar length, each of its own:
a gradient then is not that of short crystals alone or of long ones. Each row comes exactly once in an epoch; pools
keep batches from being all of one length.
Shapes: b rows of a batch, n rows of a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

POOL = 64  # batches: at batch 100 a pool of 6,400 rows leaves < 5 % padding on MP-20-like lengths


@runtime_checkable
class HasSplits(Protocol):
    """What is needed of a store: the rows of a split and the number of sites of every row."""

    def split(self, name: str) -> Int64[np.ndarray, " n"]: ...

    def column(self, name: str) -> np.ndarray: ...


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Number of batches that `epoch_batches` yields for a split of `rows` rows; the last may be smaller."""
    return -(-rows // batch_size)


def epoch_batches(
    store: HasSplits,
    split: str,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    bucket: bool = True,
    groups: int = 1,
    start: int = 0,
    chosen: Int64[np.ndarray, " n"] | None = None,
) -> Iterator[Int64[np.ndarray, " b"]]:
    """Row indices of each batch of one epoch, from batch number `start` on (the cursor of a resumed run).

    chosen: the rows of the split that take part; None: all.

    >>> batches = epoch_batches(store, "train", 100, seed=0, epoch=3, start=17)   # doctest: +SKIP
    """
    rows = store.split(split) if chosen is None else chosen
    n_sites = store.column("n_sites")[rows] if bucket else None
    order, bounds = plan_epoch(rows.size, batch_size, seed, epoch, n_sites=n_sites, groups=groups)
    for first, last in bounds[start:]:
        yield rows[order[first:last]]


def plan_epoch(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    n_sites: Integer[np.ndarray, " n"] | None = None,
    groups: int = 1,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "batches 2"]]:
    """The order of n rows in an epoch and the bounds [first, last) of its batches within that order."""
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 row, got batch_size={batch_size}")
    random = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    order = random.permutation(n)
    if n_sites is not None:
        pool = POOL * batch_size
        for first in range(0, n, pool):
            part = order[first : first + pool]
            order[first : first + pool] = part[np.argsort(n_sites[part], kind="stable")]
        if groups > 1:
            size = -(-batch_size // groups)
            runs = [order[first : first + size] for first in range(0, n, size)]
            order = np.concatenate([runs[number] for number in random.permutation(len(runs))] or [order])
    first = np.arange(0, n, batch_size)
    bounds = np.stack([first, np.minimum(first + batch_size, n)], axis=1)
    return order, bounds[random.permutation(len(bounds))]
