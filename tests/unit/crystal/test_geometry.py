"""Distances to the nearest image against brute force, limits of cells, and one atom of each site standing for all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Crystal, Tokens, wyckoff
from crystalforge.crystal.crystal import PackedCrystals
from crystalforge.crystal.geometry import (
    Geometry,
    atoms_apart,
    cell_heights,
    cells_sound,
    covalent_radii,
    nearest,
    possible,
    shortest_bond,
)
from crystalforge.crystal.orbits import to_packed

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal.of(5.69 * FCC, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def brute_force(crystal: Crystal, radii: np.ndarray, reach: int = 7) -> float:
    """Least distance over summed radii, looking at all images up to `reach` cells away."""
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    shortest = np.inf
    for i, j in itertools.product(range(len(crystal)), repeat=2):
        vectors = (crystal.frac[i] - crystal.frac[j] + images) @ crystal.lattice
        distance = np.linalg.norm(vectors, axis=1)
        nearest_image = distance[images.any(axis=1)].min() if i == j else distance.min()
        shortest = min(shortest, nearest_image / (radii[i] + radii[j]))
    return float(shortest)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nearest_equals_brute_force_below_its_limit(seed: int, by_radii: bool) -> None:
    rng = np.random.default_rng(seed)
    crystals, limit = [], 0.7 if by_radii else 1.0
    for _ in range(4):
        lattice = rng.normal(size=(3, 3)) * rng.choice([1.0, 2.0, 4.0])
        # Flatter cells have neighbours beyond the brute force's reach.
        if cell_heights(lattice[None]).min() < (0.8 if by_radii else 0.3):
            continue
        atoms = int(rng.integers(1, 6))
        crystals.append(Crystal.of(lattice, rng.choice([1, 8, 29, 55], atoms), rng.uniform(-1, 1, (atoms, 3))))
    packed = PackedCrystals.pack([*crystals[:1], None, *crystals[1:]])
    found = nearest(packed, limit, radii=covalent_radii()[packed.numbers] if by_radii else None)
    wanted = [brute_force(c, covalent_radii()[c.numbers] if by_radii else np.full(len(c), 0.5)) for c in crystals]
    wanted[1:1] = [np.inf]
    for seen, truth in zip(found, wanted, strict=False):
        assert seen == (pytest.approx(truth, abs=1e-9) if truth < limit else np.inf)


def test_a_bond_is_a_part_of_summed_radii_and_images_and_coincidence_count() -> None:
    salt = 5.69 / 2 / (1.66 + 1.02)
    squeezed = Crystal.of(0.6 * SALT.lattice, SALT.numbers, SALT.frac)
    copper = Crystal.of(2.0 * np.eye(3), [29], [[0, 0, 0]])
    twice = Crystal.of(4.0 * np.eye(3), [29, 29], [[0.3, 0, 0], [1.3, 0, -2]])
    packed = PackedCrystals.pack([SALT, squeezed, copper, twice])
    found = nearest(packed, 1.0, radii=covalent_radii()[packed.numbers])
    assert found.tolist() == pytest.approx([np.inf, 0.6 * salt, 2.0 / (2 * 1.32), 0.0])
    assert [shortest_bond(crystal) for crystal in (SALT, squeezed)] == pytest.approx([np.inf, 0.6 * salt])


def test_heights_of_a_skewed_cell() -> None:
    lattice = np.array([[[4, 0, 0], [2, 3, 0], [0, 0, 5.0]], np.zeros((3, 3))])
    np.testing.assert_allclose(cell_heights(lattice), [[12 / np.hypot(3, 2), 3, 5], [0, 0, 0]])


@pytest.mark.parametrize(
    ("lattice", "options", "sound"),
    [
        (np.eye(3) * 4, {}, True),
        (np.eye(3) * 4, {"volume_per_atom": (2.0, 63.9)}, False),
        (np.eye(3) * 4, {"volume_per_atom": (64.1, 500.0)}, False),
        (np.eye(3) * 4, {"volume_per_atom": (63.9, 64.1)}, True),
        (np.eye(3), {"volume_per_atom": (1.0, 1.0), "min_height": 1.0}, True),
        (np.eye(3) * 4, {"min_height": 4.01}, False),
        (-np.eye(3) * 4, {}, True),  # left-handed
        (np.diag([201, 2, 2.0]), {"volume_per_atom": (2.0, 1e9)}, False),
        (np.diag([199, 2, 2.0]), {"volume_per_atom": (2.0, 1e9)}, True),
        (np.array([[4, 0, 0], [0, 4, 0], [4, 4, 0.5]]), {"volume_per_atom": (1.0, 500.0)}, False),
        (np.eye(3) * 4, {"max_length": 3.9}, False),
        (np.eye(3) * 4, {"max_length": 4.0}, True),
        (np.diag([0.9, 9, 9]), {}, False),
        (np.diag([0.9, 9, 9]), {"min_height": 0.9}, True),
        (0.4 * np.eye(3), {"volume_per_atom": (0.01, 1.0), "min_height": 0.3, "max_length": 0.5}, True),
        # by default: 2 to 500 Å^3, 1 Å high, 200 Å long
        (np.diag([1, 1, 2.01]), {}, True),
        (np.diag([1, 1, 1.99]), {}, False),
        (np.diag([10, 10, 4.999]), {}, True),
        (np.diag([10, 10, 5.001]), {}, False),
        (np.diag([1.001, 9, 9]), {}, True),
        (np.diag([0.999, 9, 9]), {}, False),
        (np.diag([199.9, 1.5, 1.5]), {}, True),
        (np.diag([200.1, 1.5, 1.5]), {}, False),
        (np.zeros((3, 3)), {}, False),
        (np.full((3, 3), np.nan), {}, False),
        (np.eye(3) * 1e200, {}, False),
    ],
)
def test_limits_of_a_cell(lattice: np.ndarray, options: dict, sound: bool) -> None:
    packed = PackedCrystals.pack([Crystal.of(lattice, [29], [[0, 0, 0]])])
    assert cells_sound(packed, Geometry(**options)).tolist() == [sound]


def test_a_cell_without_atoms_is_not_sound() -> None:
    assert cells_sound(PackedCrystals.pack([Crystal.of(4 * np.eye(3), [], [])]), Geometry()).tolist() == [False]


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        ("min_distance", [0.0, 9.0], [-0.1]),
        ("min_bond", [None, 0.01, 0.99], [0.0, 1.0]),
        ("min_height", [0.01], [0.0]),
        ("max_length", [0.01], [0.0]),
    ],
)
def test_limits_that_make_sense(setting: str, allowed: list[float | None], refused: list[float]) -> None:
    for value in allowed:
        assert getattr(Geometry.model_validate({setting: value}), setting) == value
    for value in refused:
        with pytest.raises(ValueError, match=setting):
            Geometry.model_validate({setting: value})


def test_volume_is_shared_by_the_atoms() -> None:
    one, four = np.zeros((1, 3)), np.linspace(0, 0.9, 12).reshape(4, 3)
    packed = PackedCrystals.pack([
        Crystal.of(4 * np.eye(3), [29], one), None, Crystal.of(4 * np.eye(3), [29] * 4, four),
        Crystal.of(np.eye(3), [], []),
    ])  # fmt: skip
    assert cells_sound(packed, Geometry(volume_per_atom=(15.9, 16.1))).tolist() == [False, False, True, False]


def test_distances_that_are_just_allowed_are() -> None:
    copper = PackedCrystals.pack([Crystal.of(2.0 * np.eye(3), [29], [[0, 0, 0]])])
    bond = 2.0 / (2 * 1.32)
    for distance, part, apart in [
        (2.0, None, True), (2.001, None, False), (1.0, bond - 1e-9, True), (1.0, bond + 1e-9, False), (0.0, None, True),
    ]:  # fmt: skip
        assert atoms_apart(copper, Geometry(min_distance=distance, min_bond=part)).tolist() == [apart]


def pair(kind: int, distance: float) -> PackedCrystals:
    """Two atoms of one element in a large box."""
    return PackedCrystals.pack([Crystal.of(9 * np.eye(3), [kind, kind], [[0, 0, 0], [distance / 9, 0, 0]])])


def test_by_default_half_an_angstrom_and_seven_tenths_of_the_radii() -> None:
    """Two hydrogens (summed radii 0.62 Å) may stand 0.5 Å apart, two coppers (2.64 Å) 1.848 Å."""
    for kind, distance, apart in [(1, 0.51, True), (1, 0.49, False), (29, 1.849, True), (29, 1.847, False)]:
        assert atoms_apart(pair(kind, distance), Geometry()).tolist() == [apart]


def test_below_its_limit_means_below() -> None:
    """At the limit itself nothing is near; the limit may be longer than the cell."""
    copper = PackedCrystals.pack([Crystal.of(2.0 * np.eye(3), [29], [[0, 0, 0]])])
    assert nearest(copper, 2.0).tolist() == [np.inf]
    assert nearest(copper, np.nextafter(2.0, 3)).tolist() == [2.0]
    sheared = Crystal.of([[1.0, 0, 0], [2.4, 1.0, 0], [0, 0, 6.0]], [29], [[0, 0, 0]])  # b - 2a: (0.4, 1, 0)
    wide = Crystal.of([[4.0, 0, 0], [9.2, 2.0, 0], [0, 0, 9.0]], [29], [[0, 0, 0]])  # b - 2a: (1.2, 2, 0)
    found = nearest(PackedCrystals.pack([sheared, wide]), 3.0)
    assert found.tolist() == pytest.approx([1.0, np.hypot(1.2, 2)])


def test_radii_by_number() -> None:
    """Cordero 2008: carbon 0.73 (sp3: 0.76 there, as pymatgen has it), sodium 1.66, chlorine 1.02, copper 1.32, curium
    1.69; beyond it curium's."""
    radii = covalent_radii()
    assert len(radii) == 119
    assert radii[[1, 11, 17, 29, 96, 97, 118]].tolist() == [0.31, 1.66, 1.02, 1.32, 1.69, 1.69, 1.69]


def test_many_crystals_of_many_atoms_are_looked_at_in_pieces() -> None:
    """More pairs and images than are held at once: the answer is that of each crystal alone."""
    rng = np.random.default_rng(1)
    crowd = [
        Crystal.of(np.diag(rng.uniform(4, 9, 3)), rng.choice([8, 56], 60), rng.uniform(size=(60, 3))) for _ in range(9)
    ]
    packed = PackedCrystals.pack(crowd)
    radii = covalent_radii()[packed.numbers]
    alone = [nearest(PackedCrystals.pack([one]), 1.0, radii=covalent_radii()[one.numbers])[0] for one in crowd]
    assert nearest(packed, 1.0, radii=radii).tolist() == alone
    assert alone[:2] == pytest.approx([brute_force(one, covalent_radii()[one.numbers], reach=1) for one in crowd[:2]])


def random_tokens(seed: int, crystals: int = 40, sites: int = 3) -> Tokens:
    """Sites drawn at random in random space groups; letters of positions without freedom occur once."""
    rng = np.random.default_rng(seed)
    group = rng.integers(1, 231, crystals).astype(np.int32)
    letters, elements = np.zeros((crystals, sites + 1), np.int32), np.zeros((crystals, sites + 1), np.int32)
    coords = np.zeros((crystals, sites + 1, 3))
    for row, g in enumerate(group):
        count = int(rng.integers(1, sites + 1))
        letters[row, :count] = np.sort(rng.integers(1, wyckoff.n_letters()[g - 1] + 1, count))
        elements[row, :count] = rng.choice([3, 8, 26, 56], count)
        maps = wyckoff.representatives()[g - 1, letters[row, :count]]
        point = rng.uniform(size=(count, 3))
        coords[row, :count] = (np.einsum("sij,sj->si", maps[:, :, :3], point) + maps[:, :, 3]) % 1
    lengths, angles = rng.uniform(1.6, 5, (crystals, 3)), rng.uniform(1.2, 1.9, (crystals, 3))
    return Tokens(group, letters, elements, coords, np.concatenate([lengths, angles], axis=1))


@pytest.mark.parametrize("seed", range(4))
def test_one_atom_of_each_site_stands_for_all(seed: int) -> None:
    tokens, geometry = random_tokens(seed), Geometry()
    packed = to_packed(tokens, primitive=True)
    whole = cells_sound(packed, geometry)
    rows = np.flatnonzero(whole)
    whole[rows] = atoms_apart(packed.take(rows), geometry)
    assert possible(tokens, geometry).tolist() == whole.tolist()
    assert 0 < whole.sum() < len(tokens)


def test_what_cannot_be_built_is_not_possible() -> None:
    tokens = random_tokens(5, crystals=3)
    tokens.lattice[0, 0], tokens.coords[1, 0, 0] = np.nan, np.inf
    assert not possible(tokens, Geometry(min_bond=None, min_distance=0, min_height=1e-9))[:2].any()
    assert possible(Tokens.empty(), Geometry()).tolist() == []


def test_taking_some_of_packed_crystals_is_packing_those() -> None:
    crystals = [SALT, None, Crystal.of(np.eye(3) * 3, [29], [[0, 0, 0]]), SALT]
    taken = PackedCrystals.pack(crystals).take(np.array([2, 1, 0]))
    wanted = PackedCrystals.pack([crystals[2], None, SALT])
    for name in ("lattice", "n_atoms", "numbers", "frac"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(wanted, name))
