"""The objective, its maximum and the attained share, against closed forms and the stability study's crystals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalforge.evaluation.metrics.measures import log_ratio_of
from crystalforge.evaluation.metrics.objective import passed_of, rewards_of
from crystalforge.rewards import tilted

TABLE = Path(__file__).parents[3] / "docs" / "results" / "stability-crystals.parquet"

# A law over six outcomes, the last two of which a check refuses.
BASE = np.array([0.35, 0.05, 0.2, 0.1, 0.1, 0.2])
LAW = np.array([0.25, 0.25, 0.1, 0.2, 0.15, 0.05])
REWARD = np.array([0.1, 0.5, -0.3, 0.2, -1.0, -1.0])
PASSES = np.array([True, True, True, True, False, False])
TAU = 0.3
DRAWS = 200_000
ERRORS = 4.5  # standard errors: 7 in a million beyond


def drawn(law: np.ndarray, seed: int = 0, n: int = DRAWS) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(law), n, p=law)


def near(found: float, error: float, expected: float) -> bool:
    return abs(found - expected) < ERRORS * error


def test_the_objective_of_a_law_and_of_its_restriction():
    rows = drawn(LAW)
    ratio = np.log(LAW / BASE)
    exact = float((LAW * (REWARD - TAU * ratio)).sum())
    found = tilted.objective(REWARD[rows], ratio[rows], TAU)
    assert near(found.value, found.error, exact)
    share = LAW[PASSES].sum()
    cut = LAW[PASSES] / share
    cut_ratio = np.log(cut / BASE[PASSES])
    found = tilted.objective(REWARD[rows], ratio[rows], TAU, PASSES[rows])
    assert near(found.value, found.error, float((cut * (REWARD[PASSES] - TAU * cut_ratio)).sum()))
    divergence = tilted.divergence(ratio[rows], PASSES[rows])
    assert near(divergence.value, divergence.error, float((cut * cut_ratio).sum()))


def test_the_stated_errors_are_those_seen_over_repetitions():
    base_rows, n = np.random.default_rng(1), 2000
    ratio = np.log(LAW / BASE)
    values: dict[str, list[tuple[float, float]]] = {"L": [], "L, restricted": [], "L*": [], "attained": []}
    for seed in range(300):
        rows = drawn(LAW, seed, n)
        own = base_rows.choice(len(BASE), n, p=BASE)
        cut = tilted.objective(REWARD[rows], ratio[rows], TAU, PASSES[rows])
        found = {
            "L": tilted.objective(REWARD[rows], ratio[rows], TAU),
            "L, restricted": cut,
            "L*": tilted.optimum(REWARD[own], TAU),
            "attained": tilted.attained(cut, REWARD[own], TAU),
        }
        for name, each in found.items():
            values[name].append((each.value, each.error))
    for name, each in values.items():
        value, error = np.array(each).T
        assert np.mean(error) == pytest.approx(np.std(value, ddof=1), rel=0.15), name  # four errors of a spread of 300


def test_the_maximum_from_the_base_and_from_another_law():
    weights = BASE * np.exp(REWARD / TAU)
    exact = TAU * math.log(weights.sum())
    best = weights / weights.sum()
    found = tilted.optimum(REWARD[drawn(BASE)], TAU)
    assert near(found.value, found.error, exact)
    assert found.kl == pytest.approx(float((best * np.log(best / BASE)).sum()), rel=0.02)
    assert found.reward == pytest.approx(float((best * REWARD).sum()), rel=0.02)
    rows = drawn(LAW)
    other = tilted.optimum(REWARD[rows], TAU, np.log(LAW / BASE)[rows])
    assert near(other.value, other.error, exact)
    rows = drawn(best)
    at_best = tilted.optimum(REWARD[rows], TAU, np.log(best / BASE)[rows])
    assert at_best.value == pytest.approx(exact, abs=1e-12)  # all weights are equal there
    assert at_best.effective == pytest.approx(DRAWS)


def test_the_attained_share_is_zero_for_the_base_and_one_at_the_optimum():
    weights = BASE * np.exp(REWARD / TAU)
    best = weights / weights.sum()
    base = REWARD[drawn(BASE, 1)]
    for law, share in ((BASE, 0.0), (best, 1.0)):
        rows = drawn(law, 2)
        found = tilted.attained(tilted.objective(REWARD[rows], np.log(law / BASE)[rows], TAU), base, TAU)
        assert near(found.value, found.error, share)
    nothing = tilted.attained(tilted.Measured(0.0, 0.0, 4), np.full(4, -1.0), TAU)
    assert math.isnan(nothing.value)


@given(st.lists(st.floats(-2, 0.2), min_size=2, max_size=30), st.integers(1, 9))
def test_best_of_n_weights_are_a_law_and_favour_the_better(rewards, candidates):
    reward = np.array(rewards)
    weights = tilted.best_of(reward, candidates)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (weights * reward).sum() >= reward.mean() - 1e-12


def test_best_of_n_agrees_with_drawing_n():
    reward = np.random.default_rng(3).normal(size=50)
    picks = reward[np.random.default_rng(4).integers(0, 50, (100_000, 4))].max(axis=1)
    error = picks.std() / math.sqrt(len(picks))
    assert near(picks.mean(), error, float((tilted.best_of(reward, 4) * reward).sum()))
    # The best of N of equally likely, distinct outcomes has the KL of its weights, a little below the bound.
    weights = tilted.best_of(np.arange(1000.0), 8)
    exact = float((weights * np.log(weights * 1000)).sum())
    assert exact == pytest.approx(tilted.best_of_kl(8), abs=1e-3)
    assert exact <= tilted.best_of_kl(8)


def test_crystals_without_a_finite_ratio_are_left_out():
    found = tilted.objective(np.array([1.0, 2.0, 5.0]), np.array([0.0, 0.0, np.inf]), TAU)
    assert (found.value, found.n) == (1.5, 2)
    assert tilted.objective(np.zeros(0), np.zeros(0), TAU).n == 0


def test_objectives_of_a_few_crystals_by_hand():
    """Of four draws two pass, of worth 1 and 3: a mean of 2 whose variance is 2/2; half of the draws cost tau ln 2."""
    two = tilted.objective(np.array([1.0, 3.5]), np.array([0.0, 1.0]), 0.5)
    assert (two.value, two.error, two.n) == pytest.approx((2, 1, 2))
    passed = np.array([True, False, True, False])
    half = tilted.objective(np.array([1.0, 9, 3.5, -9]), np.array([0.0, 0, 1, 0]), 0.5, passed)
    assert (half.value, half.error, half.n) == pytest.approx((2 - 0.5 * math.log(2), math.sqrt(1 + 0.25 * 0.5 / 2), 2))
    one = tilted.objective(np.array([1.0]), np.array([2.0]), 0.5)
    assert (one.value, one.n) == (0, 1)
    assert math.isnan(one.error)


def test_the_maximum_of_two_crystals_by_hand():
    """At tau 2 rewards 0 and 2 ln 3 weigh 1 : 3, a mean of 2 and a standard error of 1: L* = 2 ln 2, its error 2/2."""
    reward = np.array([0.0, 2 * math.log(3)])
    for found in (tilted.optimum(reward, 2.0), tilted.optimum(np.append(reward, 9), 2.0, np.array([0, 0, np.inf]))):
        assert (found.value, found.error, found.n) == pytest.approx((2 * math.log(2), 1, 2))
        assert found.effective == pytest.approx(4**2 / (1 + 9))
        assert found.reward == pytest.approx(0.75 * 2 * math.log(3))
        assert found.kl == pytest.approx(0.75 * math.log(3) - math.log(2))
    one = tilted.optimum(np.array([0.25]), 2.0)
    assert (one.value, one.n) == (0.25, 1)
    assert math.isnan(one.error)
    none = tilted.optimum(np.zeros(0), 2.0)
    assert (none.n, none.effective) == (0, 0)
    assert math.isnan(none.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_error_of_an_attained_share_by_hand(share: float):
    """Those two crystals as the base: L(base) = ln 3, with an error of ln 3; that of L* is 1, of one sign with it."""
    base, start, room = np.array([0.0, 2 * math.log(3)]), math.log(3), 2 * math.log(2) - math.log(3)
    found = tilted.attained(tilted.Measured(start + share * room, 0.75, 7), base, 2.0)
    own = (1 - share) * math.log(3) + share
    assert (found.value, found.error, found.n) == pytest.approx((share, math.hypot(0.75, own) / room, 7))
    assert math.isnan(tilted.attained(tilted.Measured(0.0, 0.0, 7), np.zeros(0), 2.0).value)


# What the documentation says of the stability study: L, and L of what passes the guards, by label, in order of seeds.
STUDY = {
    "base": [(-1.354, -0.539)],
    "ppo": [(-1.249, -0.805), (-1.302, -0.867), (-1.324, -0.831)],
    "sft": [(-1.437, -0.651)],
}


def test_the_stability_study_has_the_objectives_that_the_documentation_quotes():
    columns = ["label", "seed", "reward", "status", "log_prob", "log_prob_base"]
    table = pq.read_table(TABLE, columns=columns)
    base = rewards_of(table.filter(pc.field("label") == "base"))
    best = tilted.optimum(base, 0.1)
    assert best.value == pytest.approx(-0.182, abs=5e-4)
    assert best.effective == pytest.approx(117, abs=1)
    assert best.kl == pytest.approx(1.80, abs=5e-3)
    for label, expected in STUDY.items():
        rows = table.filter(pc.field("label") == label)
        seeds = dict.fromkeys(rows["seed"].to_pylist())
        for seed, (plain, cut) in zip(seeds, expected, strict=True):
            part = rows.filter(pc.field("seed") == seed)
            reward, ratio, passed = rewards_of(part), log_ratio_of(part), passed_of(part)
            assert tilted.objective(reward, ratio, 0.1).value == pytest.approx(plain, abs=6e-4)
            assert tilted.objective(reward, ratio, 0.1, passed).value == pytest.approx(cut, abs=6e-4)


def test_influences_have_the_errors_variance_and_cancel_what_two_laws_share():
    """Two laws with the same random numbers mostly draw the same crystal; their difference errs as is seen."""
    rng = np.random.default_rng(11)
    n, repetitions = 400, 600
    seen, stated = [], []
    for _ in range(repetitions):
        common = rng.random(n)
        parts = []
        for law in (BASE, LAW):
            rows = np.minimum(np.searchsorted(np.cumsum(law), common), len(law) - 1)
            ratio = np.log(law / BASE)[rows]
            ratio[:3] = np.nan  # a density that overflowed
            parts.append((REWARD[rows], ratio, PASSES[rows]))
        found = [tilted.objective(reward, ratio, TAU, passed) for reward, ratio, passed in parts]
        own = [tilted.influence(reward, ratio, TAU, passed) for reward, ratio, passed in parts]
        for measured, each in zip(found, own, strict=True):
            assert each.std() / math.sqrt(n) == pytest.approx(measured.error, rel=0.01)
        seen.append(found[1].value - found[0].value)
        stated.append((own[1] - own[0]).std(ddof=1) / math.sqrt(n))
    assert np.std(seen) == pytest.approx(np.mean(stated), rel=0.1)
    nothing = tilted.influence(np.zeros(3), np.full(3, np.nan), TAU)
    assert np.isnan(nothing).all()


def test_influences_by_hand():
    """Two of four draws pass: a draw that passes adds its own reward's excess and its share's, one that fails takes."""
    reward, ratio, passed = np.array([1.0, 3.0, 9.0, 9.0]), np.zeros(4), np.array([True, True, False, False])
    assert tilted.influence(reward, ratio, 0.5, passed).tolist() == [-1.5, 2.5, -0.5, -0.5]
    assert tilted.influence(reward, np.array([2.0, 0, 0, 0]), 0.5, passed).tolist() == [-2.5, 3.5, -0.5, -0.5]
