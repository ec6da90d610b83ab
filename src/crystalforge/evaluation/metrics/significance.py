"""Could the difference between two models be chance? p-values beside the intervals of `measures.compare`.

Two models that were given the same space groups and random streams (equal seed, index and space group in every row) are
compared pair by pair, which removes the spread between space groups: the paired t test for means, McNemar's exact test
for shares. Otherwise: Welch's t test and Fisher's exact test. E_hull, whose tail is long, is compared by ranks:
Wilcoxon's signed-rank or the Mann-Whitney test. Where one of the two comes from several trainings, these are what is
compared: Student's t with the standard errors of both figures and the fewer degrees of freedom, k - 1 for k trainings.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from crystalforge.evaluation.metrics.measures import SHARES, experiments, is_paired, is_repeated, measure
from crystalforge.evaluation.metrics.statistics import Z

RATES = {"stable_rate": "stable", "novel_rate": "novel", "valid_rate": "valid"}
MEANS = {"mean_reward": "reward"}
RANKS = {"mean_e_above_hull": "e_above_hull", "mean_held_out_e_above_hull": "held_out_e_above_hull"}

Found = dict[str, dict[str, Any]]


def p_values(first: pa.Table, second: pa.Table) -> Found:
    """`{figure: {"test": name, "p": p-value}}` for the headline figures of two models that both have.

    Two-sided; figures without a spread to judge by are left out.
    """
    if is_repeated(first) or is_repeated(second):
        return _over_trainings(first, second)
    paired = is_paired(first, second)
    found: Found = {}
    for names, test in ((MEANS, mean_test), (RANKS, rank_test)):
        for figure, column in names.items():
            if column in first.column_names and column in second.column_names:
                _add(found, figure, *test(_numbers(first, column), _numbers(second, column), paired))
    shares = RATES | {figure: column for figure, (column, population) in SHARES.items() if not population}
    for figure, column in shares.items():
        if column in first.column_names and column in second.column_names:
            _add(found, figure, *share_test(_numbers(first, column) > 0, _numbers(second, column) > 0, paired))
    return found


def mean_test(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], paired: bool) -> tuple[str, float]:
    """Name and p-value of the test of equal means."""
    from scipy import stats

    if paired:
        return "paired t", _p(stats.ttest_rel(a, b))
    return "Welch's t", _p(stats.ttest_ind(a, b, equal_var=False))


def rank_test(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], paired: bool) -> tuple[str, float]:
    """Name and p-value of the test of equal distributions by ranks; pairs with an unknown value are left out."""
    from scipy import stats

    if paired:
        both = np.isfinite(a) & np.isfinite(b)
        difference = a[both] - b[both]
        return "Wilcoxon", _p(stats.wilcoxon(difference)) if difference.any() else math.nan
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return "Mann-Whitney", _p(stats.mannwhitneyu(a, b)) if len(a) and len(b) else math.nan


def share_test(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " m"], paired: bool) -> tuple[str, float]:
    """Name and p-value of the test of equal shares."""
    from scipy import stats

    if paired:
        gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
        return "McNemar", _p(stats.binomtest(gained, gained + lost, 0.5)) if gained + lost else math.nan
    counts = [[int(a.sum()), int((~a).sum())], [int(b.sum()), int((~b).sum())]]
    return "Fisher", _p(stats.fisher_exact(counts))


def _p(result: Any) -> float:
    return float(result.pvalue)


def _over_trainings(first: pa.Table, second: pa.Table) -> Found:
    from scipy import stats

    found: Found = {}
    a, b = _figures(first), _figures(second)
    for figure in a.keys() & b.keys():
        (x, error_x, trainings_x), (y, error_y, trainings_y) = a[figure], b[figure]
        error = math.hypot(error_x, error_y)
        freedom = min(k - 1 for k in (trainings_x, trainings_y) if k > 1)
        if error > 0:
            _add(found, figure, "t over trainings", float(2 * stats.t.sf(abs(y - x) / error, freedom)))
    return found


def _figures(table: pa.Table) -> dict[str, tuple[float, float, int]]:
    """(value, its standard error, number of trainings) of every figure of one label."""
    parts = experiments(table) if is_repeated(table) else [table]
    found = [measure(part) for part in parts]
    if len(found) == 1:
        # Half of a 95 % interval is Z standard errors, nearly so for the few shares whose interval is lopsided.
        return {name: (e.value, (e.high - e.low) / (2 * Z), 1) for name, e in found[0].items() if math.isfinite(e.low)}
    values = {name: np.array([each[name].value for each in found]) for name in found[0]}
    return {
        name: (float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v))), len(v))
        for name, v in values.items()
        if np.isfinite(v).all()
    }


def _add(found: Found, figure: str, test: str, p: float) -> None:
    if math.isfinite(p):
        found[figure] = {"test": test, "p": p}


def _numbers(table: pa.Table, name: str) -> Float64[np.ndarray, " n"]:
    return table.column(name).to_numpy().astype(np.float64)
