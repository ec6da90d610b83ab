"""Primitive cells: fewer atoms, the same crystal, and nothing but the same crystal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Crystal
from crystalforge.potentials import CHGNetConfig, load
from crystalforge.potentials.base import BatchedPotential, Prediction
from crystalforge.potentials.neighbors import neighbor_list
from crystalforge.potentials.primitive import primitive_cell
from crystalforge.testing import supercell

CENTRINGS = {
    "P": [[0, 0, 0]],
    "I": [[0, 0, 0], [0.5, 0.5, 0.5]],
    "C": [[0, 0, 0], [0.5, 0.5, 0]],
    "F": [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "R": [[0, 0, 0], [2 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 2 / 3]],
}


def centred(kind: str, seed: int = 0) -> Crystal:
    """A cell with three atoms in general positions for each lattice point."""
    rng = np.random.default_rng(seed)
    lattice = 5 * np.eye(3) + rng.normal(scale=0.3, size=(3, 3))
    frac = (rng.random((3, 1, 3)) + np.array(CENTRINGS[kind])).reshape(-1, 3)
    return Crystal.of(lattice, np.repeat([11, 17, 17], len(CENTRINGS[kind])), frac)


def surroundings(crystal: Crystal) -> list[tuple[float, ...]]:
    """For each atom and its neighbours within 6 Å: elements and distances, each once, in order."""
    edges = neighbor_list([crystal], 6.0)
    lines = {
        (
            float(crystal.numbers[atom]),
            *np.sort((crystal.numbers[edges.neighbor] * 100 + edges.distance)[edges.center == atom]).round(4),
        )
        for atom in range(len(crystal))
    }
    return sorted(lines)


@pytest.mark.parametrize("kind", CENTRINGS)
def test_centred_cells_become_primitive(kind):
    whole = centred(kind)
    cell = primitive_cell(whole)
    assert len(cell) == 3
    assert cell.volume == pytest.approx(whole.volume / len(CENTRINGS[kind]))
    assert np.linalg.det(cell.lattice) > 0
    assert surroundings(cell) == surroundings(whole)
    assert primitive_cell(cell) is cell


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2**16), st.sampled_from(sorted(CENTRINGS)), st.booleans())
def test_supercells_come_back_whatever_the_order_of_their_atoms(repeats, seed, kind, mirrored):
    one = centred(kind, seed)
    if mirrored:
        one = Crystal.of(one.lattice[[1, 0, 2]], one.numbers, one.frac[:, [1, 0, 2]])
    many = supercell(one, repeats)
    order = np.random.default_rng(seed).permutation(len(many))
    many = Crystal.of(many.lattice, many.numbers[order], many.frac[order] + 3.0)
    cell = primitive_cell(many)
    if len(many) <= 100:
        assert len(cell) == 3
    assert cell.volume / len(cell) == pytest.approx(many.volume / len(many))
    assert sorted(cell.numbers.tolist() * (len(many) // len(cell))) == sorted(many.numbers.tolist())


def test_what_is_only_nearly_a_translation_is_none():
    whole = centred("F")
    for shift, atoms in [(1e-3, len(whole)), (1e-5, len(whole)), (1e-9, 3)]:
        frac = whole.frac.copy()
        frac[5, 0] += shift / 5
        assert len(primitive_cell(Crystal.of(whole.lattice, whole.numbers, frac))) == atoms


def test_cells_that_are_no_crystals_come_back_as_they_are():
    for crystal in (
        Crystal.of(4 * np.eye(3), [11, 11], [[0, 0, 0], [1, 0, 0]]),  # one atom twice in one place
        Crystal.of(4 * np.eye(3), [11] * 4, [[0, 0, 0], [0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]),
        Crystal.of(4 * np.eye(3), [11], [[0, 0, 0]]),
        Crystal.of(90 * np.eye(3), np.full(500, 11), np.random.default_rng(0).random((500, 3))),
    ):
        assert primitive_cell(crystal) is crystal


def test_energies_are_asked_of_primitive_cells_and_forces_are_not():
    class Counting(BatchedPotential):
        elements = frozenset({11, 17})

        def _evaluate(self, crystals, forces, stress):
            seen.extend(len(crystal) for crystal in crystals)
            nothing = [np.zeros((len(crystal), 3)) for crystal in crystals]
            return Prediction(np.array([float(len(crystal)) for crystal in crystals]), nothing)

    seen: list[int] = []
    potential = Counting(100)
    crystals = [centred("F"), Crystal.of(np.zeros((3, 3)), [], []), Crystal.of(np.eye(3), [11], [[np.nan, 0, 0]])]
    np.testing.assert_array_equal(potential.predict(crystals).energy, [12, np.nan, np.nan])
    np.testing.assert_array_equal(potential.predict(crystals, forces=True).energy, [12, np.nan, np.nan])
    assert seen == [3, 12]


def test_the_cell_changes_no_energy():
    potential = load(CHGNetConfig())
    crystals = [centred(kind) for kind in CENTRINGS]
    sizes = np.array([len(crystal) for crystal in crystals])
    reduced, full = potential.predict(crystals), potential.predict(crystals, forces=True)
    assert np.isfinite(full.energy).all()
    np.testing.assert_allclose(reduced.energy / sizes, full.energy / sizes, atol=1e-5)
