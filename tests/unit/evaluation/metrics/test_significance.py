"""p-values against scipy, worked examples, and what chance must give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from crystalforge.evaluation.metrics.measures import is_paired
from crystalforge.evaluation.metrics.significance import mean_test, p_values, rank_test, share_test

FLAGS = ("novel", "valid", "structure_valid", "composition_valid", "sun")


def table(rng: np.random.Generator, size: int, shift: float, label: str, hashes: int = 1) -> pa.Table:
    """What `p_values` reads of a model's rows; `hashes` trainings of `size` samples each, further apart than chance."""
    parts = []
    for training in range(hashes):
        energy = 0.1 * rng.normal(size=size) + 0.1 - shift + 0.02 * training
        parts.append(
            pa.table(
                {
                    "label": [label] * size,
                    "model_hash": [f"{label}{training}"] * size,
                    "seed": np.full(size, training),
                    "index": np.arange(size),
                    "spacegroup": np.full(size, 225, np.int32),
                    "counted": np.ones(size, bool),
                    "status": np.zeros(size, np.int32),
                    "reward": -energy,
                    "e_above_hull": energy,
                    "stable": energy < 0.1,
                    **dict.fromkeys(FLAGS, np.ones(size, bool)),
                    "group": np.arange(size),
                    "stable_group": np.arange(size),
                    "log_prob": np.zeros(size),
                    "log_prob_base": np.zeros(size),
                }
            )
        )
    return pa.concat_tables(parts)


def test_worked_examples() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    b = np.array([2.0, 2.5, 4.5, 5.0])
    difference = b - a
    t = difference.mean() / (difference.std(ddof=1) / 2)
    assert mean_test(a, b, True) == ("paired t", pytest.approx(2 * stats.t.sf(t, 3)))
    # Eight of nine who changed sides went the same way: twice (9 + 1) / 2^9.
    first = np.array([False] * 8 + [True] + [True, False] * 10)
    second = np.array([True] * 8 + [False] + [True, False] * 10)
    assert share_test(first, second, True) == ("McNemar", pytest.approx(20 / 512))
    # The lady tasting tea, all eight cups right: 1 / C(8, 4), twice.
    assert share_test(np.array([True] * 4), np.array([False] * 4), False) == ("Fisher", pytest.approx(2 / 70))
    assert np.isnan(share_test(first, first, True)[1]), "nothing changed: nothing to judge by"
    assert rank_test(np.array([1.0, np.nan]), np.array([3.0, 4.0]), False)[0] == "Mann-Whitney"


def test_pairs_see_what_independent_samples_hide() -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 10, 200)
    a, b = spread + rng.normal(0, 0.1, 200), spread + 0.05 + rng.normal(0, 0.1, 200)
    assert mean_test(a, b, True)[1] < 1e-3
    assert mean_test(a, b, False)[1] > 0.5


def test_equal_models_are_found_different_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    hits = {"mean_reward": 0, "stable_rate": 0, "mean_e_above_hull": 0}
    for _ in range(200):
        found = p_values(table(rng, 60, 0.0, "a"), table(rng, 60, 0.0, "b"))
        for name in hits:
            hits[name] += found[name]["p"] < 0.05
    assert all(count <= 20 for count in hits.values()), hits  # 5 % of 200 is 10; exact tests stay below
    assert hits["mean_reward"] >= 2


def test_trainings_are_compared_when_there_are_several() -> None:
    rng = np.random.default_rng(2)
    base, tuned = table(rng, 300, 0.0, "base"), table(rng, 300, 0.05, "ppo", hashes=3)
    found = p_values(base, tuned)["mean_reward"]
    assert found["test"] == "t over trainings"
    alone = p_values(base, tuned.slice(0, 300))["mean_reward"]
    assert alone["test"] == "paired t"
    assert alone["p"] < found["p"], "three trainings that differ are weaker evidence than 300 samples of one"
    assert not is_paired(base, tuned)
