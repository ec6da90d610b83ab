"""Intervals for the figures of an evaluation.

Rates have Wilson score intervals (Wilson 1927); differences of rates combine the two intervals by Newcombe's hybrid
score method (Newcombe 1998, method 10; also known as MOVER). Means have Student-t intervals, their differences
Welch's. Where two models drew with common random numbers, observation i of one belongs to observation i of the other,
and what both owe to the draw cancels: `paired` and `paired_shares`. The number of *distinct* crystals is no sum of
independent indicators; see `distinct_interval`.

Shapes: n observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

CONFIDENCE = 0.95  # of every interval in the project
Z = 1.959963984540054  # two-sided normal quantile of CONFIDENCE


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    value, low and high are NaN where nothing was measured; n: observations it rests on.

    >>> Estimate(0.5, 0.4, 0.6, 100).excludes(0.0)
    True
    """

    value: float
    low: float
    high: float
    n: int

    def excludes(self, point: float) -> bool:
        """True when the interval is known and `point` lies outside it."""
        return bool(self.low > point or self.high < point)

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN: unknown numbers become None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {key: x if math.isfinite(x) else None for key, x in numbers.items()} | {"n": self.n}


def wilson(successes: int, n: int) -> Estimate:
    """Share of successes among n independent trials, with the Wilson score interval.

    >>> e = wilson(0, 100); round(e.low, 3), round(e.high, 3)
    (0.0, 0.037)
    """
    assert 0 <= successes <= n
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    # At the ends the exact bounds are 0 and 1; rounding must not move them past the estimate.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, n)


def distinct_interval(groups: Sequence[int], n: int) -> Estimate:
    """Share of distinct kinds, (number of different `groups`) / n, with a conservative interval.

    groups: the kind of every sample that counts; n: all samples, counting or not. Samples that repeat one another
    are not independent trials, so Wilson does not apply as it stands. Leaving one sample out lowers the number of
    kinds by one exactly when that sample is the only one of its kind; the jackknife variance of the share is
    therefore that of the indicator 'only one of its kind' (p1 = singletons / n), and the Efron-Stein inequality
    (Efron & Stein 1981) says that it is on average not too small. The half-widths are the Wilson ones of p1.

    >>> round(distinct_interval([0, 0, 1, 2], 4).value, 2)
    0.75
    """
    assert len(groups) <= n
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    counts = np.unique(np.asarray(groups, dtype=np.int64), return_counts=True)[1]
    share = len(counts) / n
    single = wilson(int((counts == 1).sum()), n)
    low = max(share - (single.value - single.low), 0.0)
    high = min(share + (single.high - single.value), 1.0)
    return Estimate(share, low, high, n)


def mean(values: Float64[np.ndarray, " n"]) -> Estimate:
    """Mean with the Student-t interval; the interval is unknown for fewer than two values."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    centre = float(values.mean())
    if n == 1:
        return Estimate(centre, math.nan, math.nan, 1)
    half = student_quantile(float(n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def welch(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " m"]) -> Estimate:
    """mean(second) - mean(first) with Welch's interval (unequal variances)."""
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return Estimate(math.nan, math.nan, math.nan, n + m)
    u, v = float(first.var(ddof=1)) / n, float(second.var(ddof=1)) / m
    difference = float(second.mean() - first.mean())
    if u + v == 0:
        return Estimate(difference, difference, difference, n + m)
    freedom = (u + v) ** 2 / (u * u / (n - 1) + v * v / (m - 1))
    half = student_quantile(freedom) * math.sqrt(u + v)
    return Estimate(difference, difference - half, difference + half, n + m)


def influence(values: Float64[np.ndarray, " n"], known: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """What each observation adds to the error of the mean over those `known`; the sum is 0.

    Of independent observations the variance over n is that of the mean (delta method: how many are known is left to
    chance as well).
    """
    count = int(known.sum())
    if count == 0:
        return np.full(len(values), math.nan)
    centred = np.where(known, values, 0.0)
    return np.where(known, centred - centred.sum() / count, 0.0) * (len(values) / count)


def paired(value: float, first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> Estimate:
    """`value`, a difference of two figures whose influences by pair are `first` and `second`, with Student's interval.

    For two means over all observations it is the interval of the paired t test.
    """
    assert len(first) == len(second)
    n = len(first)
    if n < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    half = student_quantile(float(n - 1)) * float((second - first).std(ddof=1)) / math.sqrt(n)
    return Estimate(value, value - half, value + half, n)


def paired_shares(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> Estimate:
    """share(second) - share(first) of paired observations: the score intervals combined by Newcombe's method for
    pairs (Newcombe, Statistics in Medicine 17, 2635 (1998), method 10), which takes their correlation into account."""
    assert len(first) == len(second)
    n, a, b = len(first), share(first), share(second)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    agreed = both * neither - int((first & ~second).sum()) * int((~first & second).sum())
    if agreed > 0:
        agreed = max(agreed - n / 2, 0.0)  # continuity
    scale = math.sqrt(float(first.sum()) * float((~first).sum()) * float(second.sum()) * float((~second).sum()))
    phi = agreed / scale if scale else 0.0
    value = b.value - a.value

    def half(u: float, v: float) -> float:
        return math.sqrt(max(u * u - 2 * phi * u * v + v * v, 0.0))

    low, high = half(b.value - b.low, a.high - a.value), half(b.high - b.value, a.value - a.low)
    return Estimate(value, value - low, value + high, n)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """second - first of two independent estimates, from their intervals alone (Newcombe's method 10 / MOVER)."""
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, low, high, first.n + second.n)


def bootstrap_mean(values: Float64[np.ndarray, " n"], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Mean with the percentile bootstrap interval: for skewed values, where Student-t is doubtful."""
    n = len(values)
    if n < 2:
        return mean(values)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values.mean()), float(low), float(high), n)


def across_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over repeated experiments: the spread *between* seeds makes the interval, not that within one.

    With k seeds the interval has k - 1 degrees of freedom; unknown for one seed.
    """
    return mean(np.array([e.value for e in estimates if math.isfinite(e.value)], dtype=np.float64))


def student_quantile(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def share(mask: Bool[np.ndarray, " n"]) -> Estimate:
    """Wilson interval of the share of True."""
    return wilson(int(mask.sum()), len(mask))
