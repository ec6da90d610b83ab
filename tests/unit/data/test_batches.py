"""Every row once per epoch, the same batches every time, and a cursor that continues exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalforge.data.batches import batches_per_epoch, epoch_batches, plan_epoch


@given(
    rows=st.integers(0, 300), size=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 5),
    bucket=st.booleans(), groups=st.integers(1, 5),
)  # fmt: skip
def test_each_row_comes_once(rows, size, seed, epoch, bucket, groups):
    lengths = np.random.default_rng(rows).integers(1, 21, rows) if bucket else None
    order, bounds = plan_epoch(rows, size, seed, epoch, n_sites=lengths, groups=groups)
    assert len(bounds) == batches_per_epoch(rows, size)
    batches = [order[first:last] for first, last in bounds]
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert all(1 <= len(batch) <= size for batch in batches)


def test_the_cursor_continues_exactly(store):
    whole = list(epoch_batches(store, "train", 16, seed=3, epoch=7))
    for start in (0, 1, 5, len(whole)):
        rest = list(epoch_batches(store, "train", 16, seed=3, epoch=7, start=start))
        assert len(rest) == len(whole) - start
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(rest, whole[start:], strict=True))


def test_epochs_and_seeds_differ_and_repeat(store):
    def first(seed, epoch):
        return next(epoch_batches(store, "train", 16, seed, epoch)).tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_rows_are_those_of_the_split(store):
    rows = np.concatenate(list(epoch_batches(store, "val", 10, 0, 0)))
    assert np.array_equal(np.sort(rows), store.split("val"))


def test_buckets_waste_less_on_padding(store):
    lengths = store.column("n_sites")

    def computed(bucket):
        return sum(
            int(lengths[rows].max()) * len(rows) for rows in epoch_batches(store, "all", 20, 0, 0, bucket=bucket)
        )

    needed = int(np.asarray(lengths)[store.split("all")].sum())
    assert computed(True) < 1.15 * needed < 1.6 * needed < computed(False)


def test_groups_of_a_batch_are_of_different_lengths_and_each_of_one():
    """The mean length of a batch varies less, and rows sorted by length still fall into runs without waste."""
    lengths = np.random.default_rng(0).geometric(0.2, 4000).clip(max=20)

    def batches(groups):
        order, bounds = plan_epoch(4000, 40, 0, 0, n_sites=lengths, groups=groups)
        return [np.sort(lengths[order[first:last]]) for first, last in bounds]

    spread = {groups: np.std([batch.mean() for batch in batches(groups)]) for groups in (1, 4)}
    assert spread[4] < 0.7 * spread[1]
    parts = [part for batch in batches(4) for part in batch.reshape(4, 10)]
    assert sum(part.max() * len(part) for part in parts) < 1.25 * lengths.sum()


def test_a_batch_needs_a_row():
    with pytest.raises(ValueError, match="batch_size=0"):
        plan_epoch(5, 0, 0, 0)
