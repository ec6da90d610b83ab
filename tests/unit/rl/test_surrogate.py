"""The quick guess of a reward."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.rl.surrogate import FEWEST, Surrogate, quality


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).random((n, 6)).astype(np.float32)
    return rows, np.where(rows[:, 0] > 0.5, 1.0, -1.0) + 0.5 * rows[:, 1].astype(np.float64)


def taught(n: int = 600, lowest: float | None = None) -> Surrogate:
    surrogate = Surrogate()
    surrogate.add(*data(n))
    surrogate.fit(lowest)
    return surrogate


def test_it_learns_what_can_be_learned_and_says_how_well():
    rows, reward = data(400, seed=1)
    guess = taught().guess(rows)
    assert np.corrcoef(guess, reward)[0, 1] > 0.97
    found = quality(guess, reward)
    assert found["surrogate/correlation"] > 0.97
    assert found["surrogate/error"] == pytest.approx(np.abs(guess - reward).mean())
    assert found["surrogate/bias"] == pytest.approx((guess - reward).mean())


def test_nothing_is_guessed_to_be_better_or_worse_than_what_was_judged():
    surrogate = taught()
    rows = np.random.default_rng(2).normal(0, 100, (500, 6)).astype(np.float32)
    guess, (_, judged) = surrogate.guess(rows), data(600)
    assert judged.min() <= guess.min()
    assert guess.max() <= judged.max()
    assert taught(lowest=-0.3).guess(rows).min() >= -0.3


def test_the_same_data_give_the_same_bits_however_they_came():
    rows, reward = data(600)
    parts = Surrogate()
    for part in np.array_split(np.arange(600), 4):
        parts.add(rows[part], reward[part])
        parts.fit(None)
    np.testing.assert_array_equal(parts.guess(rows), taught().guess(rows))


def test_too_few_are_not_guessed_from():
    surrogate = taught(FEWEST - 1)
    assert not surrogate.ready
    surrogate.add(*data(1, seed=3))
    surrogate.fit(None)
    assert surrogate.ready
    assert len(surrogate) == FEWEST
    assert surrogate.guess(np.zeros((0, 6), np.float32)).shape == (0,)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match=r"scikit-learn is not installed") as caught:
        taught()
    assert "training" in str(caught.value.remedy)


def test_one_crystal_says_nothing_of_the_quality():
    assert quality(np.zeros(1), np.ones(1)) == {}
    assert "surrogate/correlation" not in quality(np.zeros(3), np.arange(3.0))
