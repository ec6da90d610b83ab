"""What cannot be is refused, whatever was read: statements against atoms, and atoms against each other."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Crystal
from crystalforge.crystal.distances import shortest_distances
from crystalforge.crystal.geometry import covalent_radii
from crystalforge.crystal.reading.consistency import Stated, check, check_distances, read_formula, surely_apart
from crystalforge.crystal.reading.reasons import Unusable

CUBE = np.eye(3) * 4.12
CSCL = Crystal.of(CUBE, [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def refusal(crystal: Crystal, stated: Stated | None = None) -> Unusable:
    with pytest.raises(Unusable) as caught:
        check(crystal, stated)
    return caught.value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Ca1 F2", {20: 1, 9: 2}),
        ("CaF2", {20: 1, 9: 2}),
        ("H2 O", {1: 2, 8: 1}),
        ("D2 O", {1: 2, 8: 1}),
        ("Fe0.95 O", {26: 0.95, 8: 1}),
        ("Na 4 Cl 4", {11: 4, 17: 4}),
        ("C2 H6 C1", {6: 3, 1: 6}),
        ("Ca (O H)2", None),
        ("not known", None),
        ("Xx2", None),
        ("", None),
        ("Na+ Cl-", None),
    ],
)
def test_formulas(text, wanted):
    assert read_formula(text) == wanted


def test_a_sound_crystal_passes():
    check(CSCL)
    check(CSCL, Stated({55: 1, 17: 1}, units=1, volume=69.9, density=4.0, text="CsCl", whole=True))
    check(CSCL, Stated({55: 3, 17: 3}, text="Cs3Cl3"))  # ratios alone count
    fluorine = Crystal.of(np.diag([4, 4, 6]), [9] * 3, [[0, 0, 0], [0.5, 0, 0.5], [0, 0.5, 0.25]])
    check(fluorine, Stated({9: 3}, units=1, text="F3", whole=True))  # pymatgen: one F2


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (Stated({55: 1, 17: 2}, text="CsCl2"), "CsCl2"),
        (Stated({55: 1}, text="Cs"), "Cs1 Cl1"),
        (Stated({55: 1, 17: 1, 1: 2}, text="CsClH2"), "CsClH2"),
        (Stated({55: 2, 17: 2}, text="Cs2Cl2", whole=True), "0.5 formula units"),
        (Stated({55: 1, 17: 1}, units=4, text="CsCl", whole=True), "Z is stated as 4"),
        (Stated(volume=80.0), "80"),
        (Stated(density=8.0), "8 g/cm^3"),
    ],
)
def test_statements_that_are_not_true(stated, said):
    error = refusal(CSCL, stated)
    assert error.reason == "contradiction"
    assert said in str(error)


def test_overlaps_are_named_with_both_atoms_and_the_distance():
    error = refusal(Crystal.of(CUBE, [55, 8], [[0, 0, 0], [0.1, 0, 0]]))
    assert error.reason == "overlap"
    assert "Cs and O are 0.412 Å apart" in str(error)
    assert refusal(Crystal.of(np.diag([8, 8, 0.9]), [55], [[0, 0, 0]])).reason == "overlap"  # with its own image


def test_real_short_bonds_pass():
    hydrogen = Crystal.of(np.eye(3) * 5, [1, 1], [[0, 0, 0], [0.741 / 5, 0, 0]])
    nitrogen = Crystal.of(np.eye(3) * 5, [7, 7], [[0, 0, 0], [1.098 / 5, 0, 0]])
    hydroxyl = Crystal.of(np.eye(3) * 5, [8, 1], [[0, 0, 0], [0.82 / 5, 0, 0]])  # as X-rays see it
    for crystal in (hydrogen, nitrogen, hydroxyl):
        check(crystal)


@pytest.mark.parametrize("lattice", [np.zeros((3, 3)), [[4, 0, 0], [0, 4, 0], [4, 4, 0]], np.eye(3) * np.nan])
def test_a_cell_without_volume_is_refused(lattice):
    assert refusal(Crystal.of(lattice, [55], [[0, 0, 0]])).reason in ("degenerate-cell", "malformed-record")


def test_radii_are_those_of_the_paper():
    assert covalent_radii()[[1, 8, 17, 55]].tolist() == [0.31, 0.66, 1.02, 2.44]


numbers = st.floats(-1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=9, max_size=9), st.lists(numbers, min_size=6, max_size=6))
def test_distances_are_those_of_all_images(cell, points):
    lattice = np.eye(3) * 3 + np.array(cell).reshape(3, 3) * 2.2
    if abs(np.linalg.det(lattice)) < 8:
        return
    frac = np.array(points).reshape(2, 3)
    images = np.array(list(itertools.product(range(-5, 6), repeat=3)))
    away = frac[0] - frac[1] + images
    wanted = np.linalg.norm(away @ lattice, axis=1).min()
    own = np.linalg.norm(images[np.any(images != 0, axis=1)] @ lattice, axis=1).min()
    found = shortest_distances(lattice, frac)
    if wanted < 2.7:
        assert found[0, 1] == pytest.approx(wanted, abs=1e-9)
    else:
        assert found[0, 1] >= 2.7 - 1e-9
    if own < 2.7:
        assert found[0, 0] == pytest.approx(own, abs=1e-9)


def passes(crystal: Crystal) -> bool:
    try:
        check_distances(crystal)
    except Unusable:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(numbers, min_size=9, max_size=9),
            st.lists(st.tuples(st.integers(1, 100), numbers, numbers, numbers), min_size=1, max_size=6),
            st.sampled_from([1.0, 2.0, 4.0]),
        ),
        max_size=6,
    )
)
def test_many_at_once_are_apart_only_if_each_is(drawn) -> None:
    crystals = [
        Crystal.of(
            (np.reshape(cell, (3, 3)) + 1.5 * np.eye(3)) * size,
            [atom[0] for atom in atoms],
            [atom[1:] for atom in atoms],
        )
        for cell, atoms, size in drawn
    ]
    apart = surely_apart(crystals)
    for crystal, good in zip(crystals, apart, strict=True):
        assert not good or passes(crystal)
        heights = crystal.volume / np.array(
            [np.linalg.norm(np.cross(crystal.lattice[i - 1], crystal.lattice[i - 2])) for i in range(3)]
        )
        assert good or heights.min() < 0.51 or not passes(crystal), "an ordinary crystal is settled there"


def test_what_is_odd_is_left_to_a_look_at_it_alone() -> None:
    salt = Crystal.of(np.eye(3) * 5.6, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    nothing = Crystal.of(np.eye(3) * 5.6, [], [])
    unknown = Crystal.of(np.eye(3) * 5.6, [11, 0], [[0, 0, 0], [0.5, 0.5, 0.5]])
    nowhere = Crystal.of(np.eye(3) * 5.6, [11, 17], [[0, 0, 0], [np.nan, 0.5, 0.5]])
    flat = Crystal.of(np.diag([5.6, 5.6, 1e-9]), [11], [[0, 0, 0]])
    near = Crystal.of(np.eye(3) * 5.6, [11, 17], [[0, 0, 0], [0.98, 0, 0]])
    assert surely_apart([salt, nothing, unknown, nowhere, flat, near]).tolist() == [True, *[False] * 5]
    assert surely_apart([]).tolist() == []


def test_a_reason_survives_the_way_between_processes():
    error = Unusable("contradiction", "one side and the other", 3.5)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, str(again), again.value) == (Unusable, error.reason, str(error), "3.5")
