"""Symmetry tables: what is free, how the groups are centred, and what a wrong number is told."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import wyckoff
from crystalforge.crystal.build_tables import parse_triplet

ALL = [(g, w) for g in range(1, 231) for w in range(1, int(wyckoff.n_letters()[g - 1]) + 1)]


def test_dependent_coordinates_are_as_many_as_they_should_be() -> None:
    dependent = wyckoff.varies() & ~wyckoff.is_free()
    assert dependent.sum() == 219
    assert dependent.any(axis=2).sum() == 183
    assert dependent.any(axis=(1, 2)).sum() == 104
    assert not (wyckoff.is_free() & ~wyckoff.varies()).any()


def test_free_coordinates_determine_the_others_and_nothing_else_does() -> None:
    """Moving a free coordinate moves the representative; the rest follows from the free ones alone."""
    rng = np.random.default_rng(0)
    for g, w in ALL:
        free = wyckoff.is_free()[g - 1, w]
        linear = wyckoff.representatives()[g - 1, w, :, :3]
        point = linear @ rng.random(3)
        # Solving for the whole point from its free coordinates only must be possible and unique.
        solution, _, rank, _ = np.linalg.lstsq(linear[free], point[free], rcond=None)
        assert rank == free.sum() == np.linalg.matrix_rank(linear)
        np.testing.assert_allclose(linear @ solution, point, atol=1e-12)


def test_representatives_are_lower_triangular_and_idempotent() -> None:
    """What the sampler relies on to place x, then y given x, then z given both."""
    for g, w in ALL:
        linear, shift = wyckoff.representatives()[g - 1, w, :, :3], wyckoff.representatives()[g - 1, w, :, 3]
        assert (np.triu(linear, k=1) == 0).all()
        np.testing.assert_array_equal(linear @ linear, linear)
        again = linear @ shift
        np.testing.assert_allclose(again, np.rint(again), atol=1e-12)


def test_orbit_operations_begin_with_one_centring_block() -> None:
    """The first M/k points and the centring vectors give the whole orbit: primitive cells rest on it."""
    for g, w in ALL:
        operations, vectors = wyckoff.operations(g, w), wyckoff.centring(g)
        whole = {_key(operation) for operation in operations}
        block = operations[: len(operations) // len(vectors)]
        assert len(whole) == len(operations)
        assert {_key(operation, vector) for operation in block for vector in vectors} == whole


def _key(operation: np.ndarray, shift: np.ndarray | float = 0.0) -> tuple[int, ...]:
    translation = np.rint((operation[:, 3] + shift) * wyckoff.TRANSLATION_UNIT).astype(int)
    return (*operation[:, :3].astype(int).ravel().tolist(), *(translation % wyckoff.TRANSLATION_UNIT).tolist())


def test_centring_orders_follow_the_symbols() -> None:
    orders = {g: len(wyckoff.centring(g)) for g in (1, 5, 38, 71, 146, 166, 196, 225, 230)}
    assert orders == {1: 1, 5: 2, 38: 2, 71: 2, 146: 3, 166: 3, 196: 4, 225: 4, 230: 2}


def test_general_operations_are_those_of_spglib() -> None:
    import spglib

    for g in range(1, 231):
        database = spglib.get_symmetry_from_database(int(wyckoff.hall_numbers()[g - 1]))
        assert database is not None
        expected = np.concatenate([database["rotations"], database["translations"][:, :, None]], axis=2)
        ours = wyckoff.operations(g, int(wyckoff.n_letters()[g - 1]))
        assert {_key(operation) for operation in ours} == {_key(operation) for operation in expected}


def test_tables_are_read_only_and_shared() -> None:
    assert wyckoff.multiplicity() is wyckoff.multiplicity()
    with pytest.raises(ValueError, match="read-only"):
        wyckoff.multiplicity()[0, 0] = 1


def test_pads_and_absent_letters_are_fixed_and_not_free() -> None:
    absent = wyckoff.multiplicity() == 0
    assert wyckoff.is_fixed()[absent].all()
    assert not wyckoff.is_free()[absent].any()
    assert absent[:, 0].all()


def test_letters_have_names_and_back() -> None:
    names = [wyckoff.letter_name(w) for w in range(28)]
    assert "".join(names) == "-abcdefghijklmnopqrstuvwxyzA"
    assert [wyckoff.letter_index(name) for name in names[1:]] == list(range(1, 28))
    for wrong in ("-", "B", "", "ab"):
        with pytest.raises(InputError, match="not a Wyckoff letter"):
            wyckoff.letter_index(wrong)


@pytest.mark.parametrize(
    ("g", "system"),
    [(1, "triclinic"), (2, "triclinic"), (3, "monoclinic"), (16, "orthorhombic"), (75, "tetragonal"),
     (143, "trigonal"), (167, "trigonal"), (168, "hexagonal"), (195, "cubic"), (230, "cubic")],
)  # fmt: skip
def test_crystal_systems(g: int, system: str) -> None:
    assert wyckoff.crystal_system(g) == system


@pytest.mark.parametrize("g", [0, -1, 231])
def test_wrong_groups_are_named(g: int) -> None:
    with pytest.raises(InputError, match=f"no space group {g}"):
        wyckoff.crystal_system(g)


def test_wrong_letters_are_told_the_right_ones() -> None:
    with pytest.raises(InputError, match=r"1 \('a'\) to 9 \('i'\)"):
        wyckoff.operations(2, 10)


def test_triplets_are_read_exactly() -> None:
    assert parse_triplet("-x+1/2, x-y, 2z+7/8").tolist() == [[-1, 0, 0, 12], [1, -1, 0, 0], [0, 0, 2, 21]]
    with pytest.raises(AssertionError, match="24ths"):
        parse_triplet("x+1/5, y, z")


def test_nothing_is_loaded_before_it_is_needed_and_then_quickly() -> None:
    code = (
        "import sys, time; from crystalforge.crystal import wyckoff, convert\n"
        "assert not {'spglib', 'pymatgen', 'torch', 'pyxtal'} & set(sys.modules)\n"
        "assert wyckoff._raw.cache_info().currsize == 0\n"
        "start = time.process_time()\n"
        "wyckoff.operation_table(), wyckoff.is_free(), wyckoff.is_fixed(), wyckoff.lattice_free()\n"
        "print(time.process_time() - start)"
    )
    best = min(float(_run(code)) for _ in range(2))
    assert best < 0.05


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
