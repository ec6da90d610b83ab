"""The fourteen groups by hand, to the first and last of every crystal system; points that none beats in both values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from crystalforge.evaluation.metrics.pareto import pareto_front
from crystalforge.evaluation.metrics.spacegroups import SYSTEMS, fourteen_groups

FIRST = [1, 3, 16, 75, 143, 168, 195]


def drawn(*counts: tuple[int, int]) -> pa.Table:
    return pa.table({"spacegroup": np.repeat([group for group, _ in counts], [count for _, count in counts])})


def test_every_group_belongs_to_one_system() -> None:
    assert [low for _, low, _ in SYSTEMS] == FIRST
    assert [high + 1 for _, _, high in SYSTEMS] == [*FIRST[1:], 231]
    ends = [group for _, low, high in SYSTEMS for group in (low, high)]
    assert fourteen_groups(drawn(*[(group, 1) for group in ends])) == sorted(ends)


def test_the_two_commonest_and_of_equals_the_first() -> None:
    assert fourteen_groups(drawn((225, 5), (221, 9), (227, 7), (62, 1))) == [62, 221, 227]
    assert fourteen_groups(drawn((63, 2), (62, 2), (61, 2))) == [61, 62]


@pytest.mark.parametrize(
    ("first", "second", "front"),
    [
        ([1, 2, 1], [2, 1, 1], [True, True, False]),
        ([1, 1, 2], [1, 3, 2], [False, True, True]),
        ([2, 2], [3, 1], [True, False]),
        ([1], [-5], [True]),
        ([], [], []),
    ],
)
def test_the_front_of_two_values(first: list[float], second: list[float], front: list[bool]) -> None:
    assert pareto_front(np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)).tolist() == front
