"""The order of candidates: what a chemist would believe first."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystalforge.evaluation.ranking import ERROR, Standing, best_first

LIMIT = 0.1
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
energies = st.one_of(st.floats(-2, 2), st.just(math.nan))
standings = st.builds(
    Standing,
    energies=st.lists(energies, min_size=1, max_size=3).map(tuple),
    red=st.booleans(),
    warnings=st.integers(0, 4),
    fulfils=st.booleans(),
)


def test_the_lowest_energy_is_not_the_best():
    far_below, near, one_judge_only = Standing((-0.8, -0.7), red=True), Standing((0.02, 0.05)), Standing((-0.2, 0.3))
    assert best_first([far_below, one_judge_only, near], LIMIT) == [2, 1, 0]


def test_nothing_is_gained_below_the_judges_error():
    assert best_first([Standing((-0.09, -0.05), warnings=1), Standing((-0.031, -0.031))], LIMIT) == [1, 0]
    assert Standing((-0.09, -0.05)).worst == -ERROR


def test_the_larger_of_the_energies_counts():
    assert best_first([Standing((0.0, 0.09)), Standing((0.05, 0.06))], LIMIT) == [1, 0]


def test_a_judge_without_an_answer_does_not_agree():
    assert Standing((0.0, math.nan)).agreement(LIMIT) == 0.5
    assert best_first([Standing((0.0, math.nan)), Standing((0.09, 0.09))], LIMIT) == [1, 0]
    assert best_first([Standing((math.nan,)), Standing((1.5,))], LIMIT) == [1, 0]


def test_a_wish_goes_before_energies_but_not_before_red_flags():
    rows = [Standing((0.0,), fulfils=False), Standing((0.09,)), Standing((0.0,), red=True)]
    assert best_first(rows, LIMIT) == [1, 0, 2]


@CALM
@given(st.lists(standings, max_size=12))
def test_every_order_keeps_the_promises(rows):
    order = best_first(rows, LIMIT)
    assert sorted(order) == list(range(len(rows)))
    ranked = [rows[position] for position in order]
    assert [row.red for row in ranked] == sorted(row.red for row in ranked)
    for before, after in pairwise(ranked):
        if (before.red, before.fulfils) == (after.red, after.fulfils):
            assert before.agreement(LIMIT) >= after.agreement(LIMIT)
            if before.agreement(LIMIT) == after.agreement(LIMIT):
                assert before.worst <= after.worst


@CALM
@given(st.lists(standings, min_size=2, max_size=8), st.integers(0, 7), st.floats(0, 2))
def test_sinking_below_the_error_moves_nobody_up(rows, which, depth):
    """A generator cannot buy a rank with an energy that nobody believes."""
    which %= len(rows)
    flat = [Standing((-ERROR,) * len(row.energies), row.red, row.warnings, row.fulfils) for row in rows]
    sunk = list(flat)
    sunk[which] = Standing((-ERROR - depth,) * len(rows[which].energies), *(_rest(rows[which])))
    assert best_first(sunk, LIMIT) == best_first(flat, LIMIT)


def _rest(row: Standing) -> tuple[bool, int, bool]:
    return row.red, row.warnings, row.fulfils
