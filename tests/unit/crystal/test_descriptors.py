"""Descriptors: what they must not depend on, and some by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Crystal
from crystalforge.crystal.descriptors import LARGEST_ATOM, descriptors, element_properties
from crystalforge.crystal.geometry import covalent_radii

SALT = Crystal.of([[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]], [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
OXIDE = Crystal.of(
    np.diag([3.9, 4.1, 4.4]), [20, 22, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.45], [0.5, 0.5, 0], [0.5, 0, 0.6]]
)
UNIMODULAR = (np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]), np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))


def row(crystal: Crystal, group: int = 1, sites: int = 4) -> np.ndarray:
    return descriptors([crystal], np.array([group]), np.array([sites]))[0]


@settings(max_examples=30, deadline=None)
@given(
    shift=st.tuples(*[st.floats(-3, 3)] * 3), basis=st.sampled_from(UNIMODULAR), order=st.permutations(list(range(4)))
)
def test_neither_origin_nor_cell_nor_order_of_atoms_matters(shift, basis, order):
    frac = (OXIDE.frac + np.array(shift)) @ np.linalg.inv(basis)
    other = Crystal.of(basis @ OXIDE.lattice, OXIDE.numbers[order], frac[order])
    np.testing.assert_allclose(row(other), row(OXIDE), rtol=1e-4, atol=1e-4)


def test_a_crystal_is_described_alike_alone_and_among_others():
    together = descriptors([SALT, OXIDE, SALT], np.array([225, 1, 225]), np.array([2, 4, 2]))
    np.testing.assert_array_equal(together[1], row(OXIDE))
    np.testing.assert_array_equal(together[0], together[2])


def test_rock_salt_by_hand():
    found = row(SALT, 225, 2)
    assert found[:4].tolist() == [225, 2, 2, 2]
    assert found[4] == pytest.approx(2.82**3, rel=1e-5)  # Å^3 an atom
    radii = covalent_radii()[[11, 17]]
    assert found[5] == pytest.approx(2 * 2.82**3 / (4 / 3 * np.pi * (radii**3).sum()), rel=1e-5)
    electronegativity = element_properties()[[11, 17], 0]
    assert found[6] == pytest.approx(electronegativity.mean(), rel=1e-6)
    assert found[15] == pytest.approx(electronegativity.std(), rel=1e-5)
    shares = found[-LARGEST_ATOM:]
    assert np.flatnonzero(shares).tolist() == [10, 16]
    assert shares.sum() == pytest.approx(1)
    # Six neighbours at 2.82 Å, further ones that hardly count: Cl-Cl at 3.99 Å, Na-Na at 3.99 Å.
    around = found[6 + 36 : 6 + 36 + 20].reshape(5, 4)
    nearest = 2.82 / radii.sum()
    assert around[2, [0, 2, 3]].tolist() == pytest.approx([nearest] * 3, rel=1e-5)
    weight = 6 * np.exp(-(((nearest - 0.7) / 0.35) ** 2))
    assert weight < around[0, 2] < weight + 12 * np.exp(-(((3.98 / (2 * radii.max()) - 0.7) / 0.35) ** 2)) + 1


def test_absurd_cells_are_described_without_neighbours():
    tiny = Crystal.of(np.eye(3) * 1e-6, [8, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])
    huge = Crystal.of(np.eye(3) * 1e200, [8, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])
    found = descriptors([tiny, SALT, huge], np.array([1, 225, 1]), np.array([2, 2, 2]))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], row(SALT, 225, 2))


def test_every_element_has_its_properties():
    table = element_properties()
    assert np.isfinite(table).all()
    assert table[8, 0] == pytest.approx(3.44)
    assert table[26, [2, 3, 7]].tolist() == [8, 4, 2]  # iron: group, row, d block
    assert (table[1:, 8] > 0).all()


def test_nothing_gives_no_rows():
    assert descriptors([], np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0, len(row(SALT)))
