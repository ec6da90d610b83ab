"""Hulls whose planes are known by hand: which they are, what n_compounds counts, and what a composition falls into."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.thermo.facets import MAX_FACET_ELEMENTS, SystemHull


def hull_of(*phases: tuple[list[float], float]) -> SystemHull:
    amounts = np.array([amount for amount, _ in phases], dtype=np.float64)
    return SystemHull(amounts / amounts.sum(axis=1, keepdims=True), np.array([energy for _, energy in phases]))


def elements(*energies: float) -> list[tuple[list[float], float]]:
    return [(row.tolist(), energy) for row, energy in zip(np.eye(len(energies)), energies, strict=True)]


def planes(hull: SystemHull) -> list[list[float]]:
    assert hull.facets is not None, "the planes cover the composition space"
    return sorted(hull.facets.round(9).tolist())


def test_without_a_compound_one_plane_holds_the_elements() -> None:
    assert planes(hull_of(*elements(-1.0, -2.0, -4.0))) == [[-1, -2, -4]]
    assert planes(hull_of(*elements(-1.5))) == [[-1.5]]
    # Of an element the lowest phase; a compound above the elements shapes nothing.
    assert planes(hull_of(*elements(-1.0, -2.0), ([1, 0], -3.0), ([0, 1], -1.0), ([1, 1], -2.4))) == [[-3, -2]]


def test_a_compound_of_two_elements_makes_two_planes() -> None:
    hull = hull_of(*elements(-1.0, -2.0), ([1, 1], -3.5), ([1, 1], -3.0), ([3, 1], -2.2))
    # Through A (-1) and AB (-3.5): the potential of B is 2 * -3.5 + 1; through AB and B (-2): that of A is -7 + 2.
    assert planes(hull) == [[-5, -2], [-1, -6]]
    assert hull.energy(np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]])) == pytest.approx(
        [-2.25, -3.5, -2.75, -2]
    )


def test_a_phase_on_the_line_between_two_others_adds_no_plane() -> None:
    assert planes(hull_of(*elements(0.0, 0.0), ([3, 1], -0.5), ([1, 1], -1.0))) == [[-2, 0], [0, -2]]


def test_compounds_on_both_sides_of_the_deepest_one() -> None:
    hull = hull_of(*elements(0.0, 0.0), ([4, 1], -0.6), ([1, 1], -1.0), ([1, 4], -0.5), ([2, 3], -0.7))
    wanted = [[0, -3], [-1 / 3, -5 / 3], [-11 / 6, -1 / 6], [-2.5, 0]]
    assert planes(hull) == [pytest.approx(plane) for plane in sorted(wanted)]


@pytest.mark.parametrize("energy", [-0.25, -1.0, -5.0])
def test_a_compound_of_all_elements_makes_a_plane_for_each(energy: float) -> None:
    for count in range(3, MAX_FACET_ELEMENTS + 1):
        pure = -np.arange(count, dtype=np.float64)
        hull = hull_of(*elements(*pure), ([1] * count, float(pure.mean() + energy)))
        wanted = pure - np.diag([-count * energy] * count)  # all potentials but one are the elements'
        assert planes(hull) == [pytest.approx(plane) for plane in sorted(wanted.tolist())]
        assert hull.n_full == hull.n_compounds == 1


def test_more_elements_than_planes_are_made_for_go_through_a_linear_program() -> None:
    count = MAX_FACET_ELEMENTS + 1
    hull = hull_of(*elements(*[-1.0] * count), ([1] * count, -3.0))
    assert hull.facets is None
    assert hull.energy(np.array([[1 / count] * count, [1.0] + [0.0] * (count - 1)])) == pytest.approx([-3, -1])


def test_compounds_are_counted_and_those_of_all_elements_apart() -> None:
    hull = hull_of(*elements(0.0, 0.0, 0.0), ([1, 1, 0], 1.0), ([1, 1, 1], 2.0), ([2, 1, 1], -1.0), ([0, 0, 1], 5.0))
    assert (hull.n_compounds, hull.n_full) == (3, 2)


def test_a_lower_phase_of_a_lean_compound_is_no_element() -> None:
    """A phase of 99.9 % of one element is a compound."""
    hull = hull_of(*elements(0.0, 0.0), ([999, 1], -0.5))
    assert hull.n_compounds == 1
    assert hull.energy(np.array([[1.0, 0.0], [0.999, 0.001]])) == pytest.approx([0, -0.5])


def test_what_a_composition_falls_into_by_hand() -> None:
    hull = hull_of(*elements(-1.0, -2.0), ([1, 1], -3.5))
    ((compound, half), (element, rest)) = sorted(
        hull.decomposition(np.array([0.75, 0.25])), key=lambda part: part[0][0]
    )
    assert (compound.tolist(), element.tolist()) == ([0.5, 0.5], [1, 0])
    assert (half, rest) == pytest.approx((0.5, 0.5))
    ((only, share),) = hull.decomposition(np.array([0.5, 0.5]))
    assert (only.tolist(), share) == ([0.5, 0.5], pytest.approx(1))


def test_an_element_without_a_phase_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="each element needs a pure phase"):
        hull_of(([1, 0], 0.0), ([1, 1], -1.0))
