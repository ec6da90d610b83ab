"""Equal crystals are found however they are written, and never end on two sides of a split."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import to_crystals, tokenize, tokenize_many
from crystalforge.data.config import SplitConfig
from crystalforge.data.fingerprint import across_splits, assign_splits, fingerprints, matching, select
from crystalforge.data.sources.tables import embedded


def rewritten(crystal: Crystal, seed: int) -> Crystal:
    """The same crystal: supercell or not, turned, shifted, atoms in another order, 1 % larger."""
    random = np.random.default_rng(seed)
    structure = crystal.to_structure()
    if len(structure) <= 10:
        structure.make_supercell(np.diag(random.permutation([2, 1, 1])))
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    order = random.permutation(len(structure))
    shift = random.random(3)
    frac = (structure.frac_coords[order] + shift) % 1
    return Crystal.of(1.01 * structure.lattice.matrix @ turn, np.array(structure.atomic_numbers)[order], frac)


def originals() -> dict[str, Crystal]:
    """The undecorated structure types of the embedded data set."""
    return {record.id: record.crystal() for record in embedded().records() if ":" in record.id}


@pytest.fixture(scope="module")
def some() -> list[Crystal]:
    """Thirty crystals of one to four elements and of different structure types."""
    by_type = {name.split(":")[0]: crystal for name, crystal in originals().items()}
    chosen = [crystal for crystal in by_type.values() if 1 < len(crystal) <= 12]
    return chosen[:: len(chosen) // 30][:30]


def tokens_of(crystals: list[Crystal]) -> Tokens:
    found = tokenize_many(crystals)
    assert not found.rejects
    return found.tokens


def test_the_writing_does_not_matter(some):
    again = [rewritten(crystal, seed) for seed, crystal in enumerate(some)]
    np.testing.assert_array_equal(fingerprints(tokens_of(some)), fingerprints(tokens_of(again)))


def test_letters_do_not_matter(make):
    salt = make.rock_salt()
    moved = Crystal.of(salt.lattice, salt.numbers, salt.frac + 0.5)
    a, b = tokenize(salt), tokenize(moved)
    assert fingerprints(a).tolist() == fingerprints(b).tolist()
    swapped = Tokens(a.spacegroup, a.wyckoff, a.element[:, ::-1].copy(), a.coords, a.lattice)
    swapped.element[0, :2] = a.element[0, 1::-1]
    swapped.element[0, 2:] = 0
    assert fingerprints(swapped).tolist() == fingerprints(a).tolist()
    assert matching(Tokens.concatenate([a, swapped]), [2])[0].tolist() == [0, 0]


def test_different_crystals_differ(some, make):
    rows = fingerprints(tokens_of(some))
    assert len(np.unique(rows, axis=0)) == len(some)
    polymorphs = tokens_of([make.rock_salt(), Crystal.of(np.eye(3) * 3.5, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])])
    halves = fingerprints(polymorphs)
    assert halves[0, :8].tolist() == halves[1, :8].tolist(), "one formula"
    assert halves[0, 8:].tolist() != halves[1, 8:].tolist(), "two space groups"


def test_a_row_without_a_site_has_a_fingerprint_of_its_own(some):
    tokens = tokens_of(some[:2])
    slots = tokens.wyckoff.shape[1]
    nothing = np.zeros((1, slots), np.int32)
    empty = Tokens(np.ones(1, np.int32), nothing, nothing, np.zeros((1, slots, 3)), np.zeros((1, 6)))
    found = fingerprints(Tokens.concatenate([tokens, empty]))
    np.testing.assert_array_equal(found[:2], fingerprints(tokens))
    assert len({bytes(row) for row in found}) == 3


def test_duplicates_go_and_the_first_stays(some):
    tokens = tokens_of([*some, *(rewritten(crystal, 7) for crystal in some)])
    keep = select(lambda rows: tokens[rows], fingerprints(tokens), np.zeros(len(tokens), np.int8), deduplicate=True)
    assert keep.tolist() == [True] * len(some) + [False] * len(some)


def test_test_wins_over_val_over_train(some):
    tokens = tokens_of([some[0], rewritten(some[0], 1), rewritten(some[0], 2), some[1], rewritten(some[1], 3)])
    split = np.array([0, 2, 1, 0, 0], np.int8)
    prints = fingerprints(tokens)
    assert select(lambda rows: tokens[rows], prints, split, deduplicate=True).tolist() == [0, 1, 0, 1, 0]
    # Without de-duplication rows may repeat within a split, but none may have its like in another one.
    assert select(lambda rows: tokens[rows], prints, split, deduplicate=False).tolist() == [0, 1, 0, 1, 1]


def test_reference_rows_are_left_alone(some):
    tokens = tokens_of([some[0], rewritten(some[0], 1)])
    split = np.array([-1, 0], np.int8)
    assert select(lambda rows: tokens[rows], fingerprints(tokens), split, deduplicate=True).all()


def test_same_fingerprint_but_another_structure():
    """Two rutile-like crystals of one formula, group and orbits, with a coordinate far apart, are two crystals."""
    one = next(crystal for name, crystal in originals().items() if "_tP6_136_" in name)
    two = Crystal.of(one.lattice * [[1.0], [1.0], [1.6]], one.numbers, one.frac)
    tokens = tokens_of([one, two])
    prints = fingerprints(tokens)
    assert prints[0].tolist() == prints[1].tolist()
    assert not StructureMatcher().fit(one.to_structure(), two.to_structure())
    assert select(lambda rows: tokens[rows], prints, np.zeros(2, np.int8), deduplicate=True).all()


def test_splits_follow_the_formula_alone(some):
    prints = np.repeat(fingerprints(tokens_of(some)), 2, axis=0)
    prints[1::2, 8:] += 1  # a polymorph each
    split = assign_splits(prints, SplitConfig())
    np.testing.assert_array_equal(split[::2], split[1::2])
    np.testing.assert_array_equal(assign_splits(prints[::-1].copy(), SplitConfig())[::-1], split)


def test_shares_and_seeds():
    prints = np.random.default_rng(0).integers(0, 256, (20_000, 16)).astype(np.uint8)
    config = SplitConfig(train=0.7, val=0.2, test=0.1)
    shares = np.bincount(assign_splits(prints, config), minlength=3) / len(prints)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.015)  # four standard deviations of a count
    other = assign_splits(prints, config.model_copy(update={"seed": 1}))
    assert 0.3 < (other != assign_splits(prints, config)).mean() < 0.6
    assert not assign_splits(prints, SplitConfig(train=1, val=0, test=0)).any()


def test_groups_agree_with_pymatgen(some):
    """The short cuts (equal tokens, reduction done once) do not change the matcher's verdict."""
    distorted = []
    for seed, crystal in enumerate(some[:6]):
        tokens = tokenize(crystal)
        for factor in (1.0, 1.02, 1.3):
            stretched = Tokens(tokens.spacegroup, tokens.wyckoff, tokens.element, tokens.coords, tokens.lattice.copy())
            stretched.lattice[0, 2] *= factor if tokens.spacegroup[0] < 195 else 1
            distorted.append((seed, stretched))
    for seed in range(6):
        group = Tokens.concatenate([tokens for owner, tokens in distorted if owner == seed])
        structures: list[Structure] = [c.to_structure() for c in to_crystals(group, primitive=True) if c is not None]
        expected = [0, *(0 if StructureMatcher().fit(structures[0], other) else -1 for other in structures[1:])]
        ours = matching(group, [len(group)])[0]
        assert [0 if value == 0 else -1 for value in ours] == expected


def twins() -> tuple[Crystal, Crystal, Crystal]:
    """Quartz of both hands (P3_2 2 1 and P3_1 2 1), and a copy so distorted that its symmetry is gone."""
    quartz = Structure.from_spacegroup(
        "P3_121", Lattice.hexagonal(4.913, 5.405), ["Si", "O"], [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.786]]
    )
    lattice, numbers, frac = quartz.lattice.matrix, quartz.atomic_numbers, quartz.frac_coords
    right = Crystal.of(lattice, numbers, frac)
    left = Crystal.of(lattice, numbers, frac * [1, 1, -1])
    moved = Crystal.of(lattice, numbers, frac + 0.01 * np.random.default_rng(0).standard_normal(frac.shape))
    return right, left, moved


def test_twins_and_distorted_copies_across_splits_are_found():
    tokens = tokens_of(list(twins()))
    assert sorted(tokens.spacegroup[:2].tolist()) == [152, 154]
    assert tokens.spacegroup[2] == 1
    marks = fingerprints(tokens)
    assert len(np.unique(marks, axis=0)) == 3
    apart = np.array([2, 0, 1], np.int8)  # test, train, val
    assert select(lambda rows: tokens[rows], marks, apart, deduplicate=True).all(), "not compared, as it says"
    found = across_splits(lambda rows: tokens[rows], marks, apart)
    assert sorted(found.tolist()) == [[1, 0], [2, 0]]
    together = np.zeros(3, np.int8)
    assert not len(across_splits(lambda rows: tokens[rows], marks, together))
    assert not len(across_splits(lambda rows: tokens[rows], marks, np.array([2, -1, 2], np.int8)))


def test_polymorphs_of_other_structure_are_no_leak(make):
    tokens = tokens_of([make.rock_salt(), Crystal.of(np.eye(3) * 3.5, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])])
    assert not len(across_splits(lambda rows: tokens[rows], fingerprints(tokens), np.array([2, 0], np.int8)))
