"""Intervals against published worked examples, scipy, and their own promise of coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.statistics import Estimate


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 29), (15, 148), (81, 263), (10, 10), (500, 1000)])
def test_wilson_equals_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = statistics.wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == successes / n


def test_difference_of_rates_equals_newcombes_worked_examples():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10."""
    found = statistics.difference(statistics.wilson(48, 80), statistics.wilson(56, 70))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    found = statistics.difference(statistics.wilson(3, 10), statistics.wilson(9, 10))
    assert (found.low, found.high) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_means_equal_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 40), rng.normal(0.4, 3, 70)
    expected = stats.ttest_1samp(first, 0).confidence_interval()
    assert (statistics.mean(first).low, statistics.mean(first).high) == pytest.approx(tuple(expected))
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    found = statistics.welch(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.value == pytest.approx(second.mean() - first.mean())


def test_bootstrap_agrees_with_student_on_well_behaved_values():
    values = np.random.default_rng(1).normal(2, 1, 400)
    a, b = statistics.mean(values), statistics.bootstrap_mean(values)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.02)


def test_bootstrap_by_hand():
    """Resampled means of zeros and ones are binomial: where its tails end is known."""
    nine = statistics.bootstrap_mean(np.array([9.0, 0, 0, 0]))  # P(k <= 2) = 0.949, P(k <= 3) = 0.996
    assert (nine.value, nine.low, nine.high, nine.n) == (2.25, 0, 6.75, 4)
    two = statistics.bootstrap_mean(np.array([0.0, 1.0]))
    assert (two.low, two.high) == (0, 1), "Student's interval would reach from -5.9 to 6.9"
    # Three ones of seven: P(k = 0) = (4/7)^7 = 0.0199, less than a fortieth and more than a sixtieth.
    seven = statistics.bootstrap_mean(np.array([1.0, 1, 1, 0, 0, 0, 0]), resamples=40_000)
    assert seven.low == pytest.approx(1 / 7)


@pytest.mark.parametrize("kinds", [30, 300, 30000])
def test_interval_of_distinct_kinds_covers_its_expectation(kinds):
    """Samples of 200 from skewed populations: at least 93 of 100 intervals hold the expected share of kinds."""
    rng = np.random.default_rng(kinds)
    weights = rng.exponential(size=kinds)
    weights /= weights.sum()
    n, trials = 200, 400
    expected = (1 - (1 - weights) ** n).sum() / n
    hits = 0
    for _ in range(trials):
        drawn = rng.choice(kinds, size=n, p=weights)
        found = statistics.distinct_interval(drawn.tolist(), n)
        hits += found.low <= expected <= found.high
    assert hits / trials >= 0.93


def test_distinct_kinds_count_samples_that_do_not_take_part():
    found = statistics.distinct_interval([4, 4, 7], 10)
    assert found.value == 0.2
    assert 0 <= found.low < 0.2 < found.high <= 1


def test_nothing_measured_is_unknown_rather_than_zero():
    for found in (statistics.wilson(0, 0), statistics.distinct_interval([], 0), statistics.mean(np.zeros(0))):
        assert math.isnan(found.value)
        assert found.as_dict() == {"value": None, "low": None, "high": None, "n": 0}
        assert not found.excludes(0.0)
    assert math.isnan(statistics.mean(np.ones(1)).low)


def test_seeds_are_the_unit_of_repeated_experiments():
    found = statistics.across_seeds([Estimate(v, v - 9, v + 9, 1000) for v in (1.0, 2.0, 3.0)])
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (found.value, found.low, found.n) == (2.0, pytest.approx(2 - half), 3)


def test_an_interval_that_ends_at_a_point_does_not_exclude_it():
    found = Estimate(0.5, 0.25, 0.75, 8)
    assert [found.excludes(point) for point in (0.2, 0.25, 0.5, 0.75, 0.8)] == [True, False, False, False, True]


def test_welch_by_hand():
    found = statistics.welch(np.array([1.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    # Variances 2 and 4, so u = 1 and v = 4/3; freedom (7/3)^2 / (1 + (4/3)^2 / 2).
    half = stats.t.ppf(0.975, (7 / 3) ** 2 / (1 + 8 / 9)) * math.sqrt(7 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert found.n == 5
    same = statistics.welch(np.array([1.0, 1.0]), np.array([3.0, 3.0]))
    assert (same.value, same.low, same.high) == (2, 2, 2)
    for one, other in [(1, 5), (5, 1), (0, 0)]:
        few = statistics.welch(np.ones(one), np.ones(other))
        assert math.isnan(few.value)
        assert few.n == one + other


def test_intervals_of_a_mean_by_hand():
    found = statistics.mean(np.array([1.0, 2.0, 6.0]))
    half = stats.t.ppf(0.975, 2) * math.sqrt(7 / 3)
    assert (found.value, found.low, found.high, found.n) == (3, pytest.approx(3 - half), pytest.approx(3 + half), 3)
    one = statistics.mean(np.array([4.0]))
    assert (one.value, one.n) == (4, 1)
    assert statistics.bootstrap_mean(np.array([4.0])).n == 1
    assert statistics.bootstrap_mean(np.array([1.0, 1.0])).as_dict() == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert statistics.share(np.array([True, False, True, True])) == statistics.wilson(3, 4)
    assert statistics.difference(found, found).n == 6
    assert statistics.across_seeds([Estimate(value, 0.0, 2.0, 9) for value in (1.0, math.nan, 3.0)]).n == 2


def test_distinct_kinds_by_hand():
    """Kinds 4 4 7 of ten samples: two kinds, of which one occurs once; half-widths are Wilson's of one in ten."""
    found = statistics.distinct_interval([4, 4, 7], 10)
    single = stats.binomtest(1, 10).proportion_ci(method="wilson")
    assert (found.value, found.n) == (0.2, 10)
    assert (found.low, found.high) == pytest.approx((0.2 - (0.1 - single.low), 0.2 + single.high - 0.1))
    assert statistics.distinct_interval([0, 1, 2], 3).high == 1
    assert statistics.distinct_interval([0, 0, 0, 0], 4).low == pytest.approx(0.25)


def test_paired_means_equal_scipy():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 1, 50)
    second = first + rng.normal(0.2, 0.5, 50)
    every = np.ones(50, bool)
    found = statistics.paired(
        float(second.mean() - first.mean()), statistics.influence(first, every), statistics.influence(second, every)
    )
    expected = stats.ttest_rel(second, first).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.high - found.low < statistics.welch(first, second).high - statistics.welch(first, second).low


def test_influence_by_hand():
    """Two of four are known: each known one counts for two, and the others for nothing."""
    values, known = np.array([1.0, np.nan, 4.0, np.nan]), np.array([True, False, True, False])
    assert statistics.influence(values, known).tolist() == [-3, 0, 3, 0]
    assert np.isnan(statistics.influence(values, np.zeros(4, bool))).all()


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither", "interval"),
    [
        (36, 12, 2, 0, (0.0569, 0.3404)),  # Newcombe 1998, table III
        (20, 10, 0, 20, (0.0803, 0.3073)),
        (54, 0, 0, 0, (-0.0664, 0.0664)),  # nobody changed: Wilson's width remains
    ],
)
def test_paired_shares_are_newcombes(both, lost, gained, neither, interval):
    first = np.repeat([True, False, True, False], [both, lost, gained, neither])
    second = np.repeat([True, True, False, False], [both, lost, gained, neither])
    found = statistics.paired_shares(first, second)
    assert found.value == pytest.approx((lost - gained) / len(first))
    assert (found.low, found.high) == pytest.approx(interval, abs=5e-5)
    turned = statistics.paired_shares(second, first)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_intervals_of_paired_shares_hold_what_they_promise():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        common = rng.random(200)
        first = np.where(rng.random(200) < 0.6, common, rng.random(200)) < 0.1
        second = common < 0.16
        found = statistics.paired_shares(first, second)
        hits += found.low <= 0.06 <= found.high
    assert hits / 400 >= 0.93
