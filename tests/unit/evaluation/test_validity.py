"""Validity against the packages whose definitions it follows."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.geometry import Geometry, atoms_apart, cells_sound
from crystalforge.evaluation import validity
from crystalforge.evaluation.validity import composition_valid, min_distance, reduced_composition, structure_valid


def of_elements(*symbols: str) -> Crystal:
    from pymatgen.core import Element

    numbers = [Element(symbol).Z for symbol in symbols]
    return Crystal.of(9 * np.eye(3), numbers, np.linspace(0, 0.9, len(symbols))[:, None] * np.ones(3))


def test_shortest_distance_equals_pymatgens_matrix(prototypes):
    for crystal in prototypes[::3]:
        if len(crystal) > 1:
            matrix = crystal.to_structure().distance_matrix
            np.fill_diagonal(matrix, np.inf)
            assert min_distance(crystal) == pytest.approx(matrix.min(), abs=1e-10)


@pytest.mark.parametrize(
    ("lattice", "frac", "valid"),
    [
        (3 * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], True),
        (3 * np.eye(3), [[0, 0, 0], [0.16, 0, 0]], False),  # 0.48 Å
        (3 * np.eye(3), [[0.01, 0, 0], [0.98, 0, 0]], False),  # close only across the cell's face
        (np.diag([9.0, 9.0, 1e-3]), [[0, 0, 0], [0.5, 0.5, 0]], False),  # 0.08 Å^3
        (np.full((3, 3), np.nan), [[0, 0, 0], [0.5, 0.5, 0.5]], False),
        (np.zeros((3, 3)), [[0, 0, 0], [0.5, 0.5, 0.5]], False),
    ],
)
def test_structure_rule(lattice, frac, valid):
    assert structure_valid(Crystal.of(lattice, [11, 17], frac))[0] is valid


def test_what_could_not_be_built_is_invalid():
    assert structure_valid(None)[0] is False
    assert composition_valid(None) is False


@pytest.mark.parametrize(
    ("symbols", "valid"),
    [
        (("Na", "Cl"), True),
        (("Na", "Cl", "Cl"), False),
        (("Sr", "Ti", "O", "O", "O"), True),
        (("He",), True),  # one element
        (("Cu", "Zn", "Al"), True),  # alloy
        (("Ar", "O"), False),  # argon has no oxidation state
        (("O", "F", "F"), True),
        (("Og", "O"), False),
    ],
)
def test_composition_rule(symbols, valid):
    assert composition_valid(of_elements(*symbols)) is valid


def test_composition_equals_smact_on_many_compositions():
    """Against smact's own screening with the same oxidation states. It rejects unknown electronegativities, which
    CDVAE passes; the elements here all have one."""
    from smact.screening import smact_validity

    symbols = ["Li", "Na", "Mg", "Ti", "Fe", "Ga", "Sb", "N", "O", "S", "Cl", "I"]
    seen = set()
    for pair in itertools.combinations(symbols, 2):
        for counts in itertools.product((1, 2, 3), repeat=2):
            crystal = of_elements(*(s for s, n in zip(pair, counts, strict=True) for _ in range(n)))
            expected = _smact(smact_validity, crystal)
            assert composition_valid(crystal) is expected, crystal.formula
            seen.add(expected)
    for triple in itertools.combinations(symbols, 3):
        crystal = of_elements(*triple, triple[2])
        assert composition_valid(crystal) is _smact(smact_validity, crystal), crystal.formula
    assert seen == {True, False}


def _smact(validity, crystal: Crystal) -> bool:
    from pymatgen.core import Composition, Element

    composition = Composition({Element.from_Z(z): n for z, n in reduced_composition(crystal)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(validity(composition, oxidation_states_set="smact14"))


def test_reduced_composition_divides_by_the_common_divisor():
    assert reduced_composition(of_elements("O", "Ti", "O", "O", "Ti", "O")) == ((8, 2), (22, 1))


def by_walking_all_assignments(composition: tuple[tuple[int, int], ...]) -> bool:
    """The definition, word for word."""
    elements = [validity._element(z) for z, _ in composition]
    if len(composition) == 1 or all(metal for _, _, metal in elements):
        return True
    values = [value for _, value, _ in elements]
    for states in itertools.product(*(states for states, _, _ in elements)):
        if sum(state * count for state, (_, count) in zip(states, composition, strict=True)) != 0:
            continue
        cations = [value for state, value in zip(states, values, strict=True) if state > 0]
        anions = [value for state, value in zip(states, values, strict=True) if state < 0]
        if None in values or not cations or not anions or max(cations) < min(anions):
            return True
    return False


def test_composition_validity_equals_the_walk_over_all_assignments() -> None:
    generator = np.random.default_rng(0)
    outcomes = []
    for _ in range(2000):
        numbers = np.sort(generator.choice(np.arange(1, 95), size=generator.integers(1, 5), replace=False))
        composition = tuple((int(z), int(generator.integers(1, 7))) for z in numbers)
        outcomes.append(by_walking_all_assignments(composition))
        assert validity._composition_valid(composition) == outcomes[-1], composition
    assert 0.1 < np.mean(outcomes) < 0.9


@pytest.mark.timeout(30)
def test_many_elements_do_not_multiply_the_work() -> None:
    crowd = tuple((z, 1) for z in (7, 16, 23, 24, 25, 26, 34, 42, 44, 52, 74, 75, 76, 77))
    assert validity._composition_valid(crowd)  # all assignments one by one would take hours


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_what_the_sampler_lets_pass_is_a_valid_structure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = int(rng.integers(1, 5))
    crystal = Crystal.of(
        rng.normal(size=(3, 3)) * rng.uniform(1, 4), rng.integers(1, 10, atoms), rng.random((atoms, 3))
    )
    packed, geometry = PackedCrystals.pack([crystal]), Geometry()
    if cells_sound(packed, geometry)[0] and atoms_apart(packed, geometry)[0]:
        assert structure_valid(crystal)[0]
