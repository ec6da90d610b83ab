"""The rules of batches: chunks by atoms, one bad crystal harms nobody, neighbours as pymatgen finds them."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import (
    Prediction,
    atom_chunks,
    predict_isolated,
    unsuitable,
)
from crystalforge.potentials.neighbors import angles, neighbor_list, pair_up
from crystalforge.testing import example_crystals

ELEMENTS = frozenset(range(1, 95))


def cubes(sizes: list[int]) -> list[Crystal]:
    return [Crystal.of(4 * np.eye(3), np.full(size, 8), np.full((size, 3), 0.5)) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([], []),
        ([3, 3, 3], [(0, 3)]),
        ([5, 5, 1], [(0, 2), (2, 3)]),
        ([20, 1, 9, 1], [(0, 1), (1, 3), (3, 4)]),
        ([1, 20], [(0, 1), (1, 2)]),
    ],
)
def test_chunks_hold_at_most_the_atoms_allowed(sizes, wanted):
    chunks = list(atom_chunks(cubes(sizes), 10))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == wanted


def isolated(evaluate, crystals, max_atoms=100) -> Prediction:
    return predict_isolated(crystals, evaluate, elements=ELEMENTS, max_atoms=max_atoms, forces=False, stress=False)


def test_an_exception_is_pinned_on_the_crystal_that_causes_it():
    calls = []

    def evaluate(chunk):
        calls.append(len(chunk))
        if any(len(crystal) == 7 for crystal in chunk):
            raise RuntimeError("seven is unlucky\nsecond line")
        return Prediction(np.array([float(len(crystal)) for crystal in chunk]))

    answer = isolated(evaluate, cubes([1, 2, 7, 3, 4, 5, 6, 8]))
    assert answer.problems[2] == "RuntimeError: seven is unlucky"
    np.testing.assert_array_equal(answer.energy, [1, 2, np.nan, 3, 4, 5, 6, 8])
    assert len(calls) <= 1 + 2 * 3  # halving, not one by one


def test_infinite_answers_become_nan_with_a_problem():
    answer = isolated(lambda chunk: Prediction(np.array([1.0, np.inf, np.nan])), cubes([1, 2, 3]))
    assert answer.problems == (None, "the model's answer is not finite", "the model's answer is not finite")
    np.testing.assert_array_equal(answer.energy, [1, np.nan, np.nan])


def test_unsuitable_crystals_never_reach_the_model():
    seen = []

    def evaluate(chunk):
        seen.extend(chunk)
        return Prediction(np.zeros(len(chunk)))

    good = cubes([2])[0]
    bad = [
        Crystal.of(4 * np.eye(3), [], []),
        Crystal.of(4 * np.eye(3), [8], [[np.nan, 0, 0]]),
        Crystal.of(np.diag([4, 4, 0.0]), [8], [[0, 0, 0]]),
        Crystal.of(np.diag([4, 4, 0.1]), [8], [[0, 0, 0]]),
        Crystal.of(4 * np.eye(3), [95], [[0, 0, 0]]),
    ]
    answer = isolated(evaluate, [*bad, good])
    assert seen == [good]
    for problem, words in zip(
        answer.problems, ["no atoms", "not finite", "flat cell", "flat cell", "Z = 95"], strict=False
    ):
        assert problem is not None
        assert words in problem
    assert unsuitable(good, ELEMENTS) is None


def test_neighbours_equal_pymatgens_and_come_in_pairs():
    crystals = example_crystals()
    edges = neighbor_list(crystals, 5.0)
    offset = 0
    for number, crystal in enumerate(crystals):
        center, neighbor, image, distance = crystal.to_structure().get_neighbor_list(5.0)
        mine = edges.crystal == number
        ours = np.column_stack([edges.center[mine] - offset, edges.neighbor[mine] - offset, edges.image[mine]])
        theirs = np.column_stack([center, neighbor, image]).astype(int)
        assert {tuple(row) for row in ours} == {tuple(row) for row in theirs}
        assert np.sort(edges.distance[mine]) == pytest.approx(np.sort(distance))
        offset += len(crystal)
    paired, undirected, representative = pair_up(edges)
    assert len(paired.center) == len(edges.center) == 2 * len(representative)
    np.testing.assert_array_equal(undirected[representative], np.arange(len(representative)))
    for number in range(len(representative)):
        one, other = np.flatnonzero(undirected == number)
        assert (paired.center[one], paired.neighbor[one]) == (paired.neighbor[other], paired.center[other])
        np.testing.assert_array_equal(paired.image[one], -paired.image[other])


def test_angles_are_all_ordered_pairs_at_a_centre():
    edges, _, _ = pair_up(neighbor_list(example_crystals()[:2], 4.0))
    left, right = angles(edges, 3.2)
    wanted = {
        (i, j)
        for i in range(len(edges.center))
        for j in range(len(edges.center))
        if i != j and edges.center[i] == edges.center[j] and max(edges.distance[[i, j]]) <= 3.2
    }
    assert len(wanted) > 20
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == wanted
