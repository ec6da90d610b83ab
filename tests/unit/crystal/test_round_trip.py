"""tokens -> crystal -> tokens -> crystal over random crystals of all 230 space groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crystalforge.crystal import MAX_SITES, Crystal, Tokens, wyckoff
from crystalforge.crystal import lattice as cells
from crystalforge.crystal.convert import to_crystals, tokenize

# Å; forty times the tolerance of the symmetry search, so that atoms cannot be taken for one another.
TOO_CLOSE = 0.4


def draw_cell(g: int, rng: np.random.Generator) -> np.ndarray:
    """Six parameters of the group's crystal system, generic within it (edges well apart, oblique angles oblique)."""
    edges = rng.permutation([1.0, 1.27, 1.61]) * rng.uniform(2.2, 2.8)
    angles = np.deg2rad(rng.permutation([83.0, 97.0, 108.0]) + rng.uniform(-3, 3, 3))
    return cells.symmetrize(np.array([g]), np.concatenate([edges, angles])[None])[0]


def draw_tokens(g: int, rng: np.random.Generator, *, sites: int, max_multiplicity: int = 192) -> Tokens:
    """One crystal with up to `sites` orbits: sorted letters, fixed ones at most once, free coordinates at random."""
    multiplicity, fixed = wyckoff.multiplicity()[g - 1], wyckoff.is_fixed()[g - 1]
    letters = np.flatnonzero((multiplicity > 0) & (multiplicity <= max(max_multiplicity, multiplicity[1])))
    drawn = sorted(int(w) for w in rng.choice(letters, sites))
    chosen = [w for place, w in enumerate(drawn) if not (fixed[w] and w in drawn[:place])]
    tokens = Tokens(
        np.array([g], np.int32),
        np.zeros((1, MAX_SITES), np.int32),
        np.zeros((1, MAX_SITES), np.int32),
        np.zeros((1, MAX_SITES, 3)),
        draw_cell(g, rng)[None],
    )
    for slot, w in enumerate(chosen):
        representative = wyckoff.representatives()[g - 1, w]
        tokens.wyckoff[0, slot] = w
        tokens.element[0, slot] = rng.integers(1, 95)
        tokens.coords[0, slot] = (representative[:, :3] @ rng.random(3) + representative[:, 3]) % 1.0
    return tokens


def closest_approach(lattice: np.ndarray, frac: np.ndarray) -> float:
    """Shortest distance between two atoms, Å (27 images: enough for the compact cells drawn here)."""
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    delta = frac[:, None] - frac[None]
    delta -= np.rint(delta)
    distances = np.linalg.norm((delta[:, :, None] + shifts) @ lattice, axis=-1).min(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def order(g: int) -> int:
    """Operations of the group in its conventional cell."""
    return int(wyckoff.multiplicity()[g - 1].max())


def conventional(tokens: Tokens) -> Crystal:
    crystal = to_crystals(tokens)[0]
    assert crystal is not None
    return crystal


def is_invariant(crystal: Crystal, g: int) -> bool:
    """Whether every operation of the space group maps the conventional cell onto itself, atom by atom."""
    for operation in wyckoff.operations(g, int(wyckoff.n_letters()[g - 1])):
        moved = crystal.frac @ operation[:, :3].T + operation[:, 3]
        delta = moved[:, None] - crystal.frac[None]
        delta -= np.rint(delta)
        distance = np.abs(delta).sum(axis=2) + 10.0 * (crystal.numbers[:, None] != crystal.numbers[None])
        if distance.min(axis=1).max() > 1e-6:
            return False
    return True


@pytest.mark.parametrize("first", range(1, 231, 46))
def test_drawn_crystals_have_the_symmetry_they_were_drawn_with(first: int) -> None:
    import spglib

    rng = np.random.default_rng(first)
    for g in range(first, min(first + 46, 231)):
        tokens = draw_tokens(g, rng, sites=3, max_multiplicity=48)
        crystal, primitive = conventional(tokens), to_crystals(tokens, primitive=True)[0]
        assert primitive is not None
        assert is_invariant(crystal, g), f"space group {g}"
        assert len(primitive) * len(wyckoff.centring(g)) == len(crystal)
        assert primitive.volume * len(wyckoff.centring(g)) == pytest.approx(crystal.volume, rel=1e-9)
        # The primitive cell is a cell of the same crystal: its atoms and translations lie on the conventional
        # ones.
        back = primitive.frac @ primitive.lattice @ np.linalg.inv(crystal.lattice)
        delta = back[:, None] - crystal.frac[None]
        delta -= np.rint(delta)
        onto = np.abs(delta).sum(axis=2) + 10.0 * (primitive.numbers[:, None] != crystal.numbers[None])
        assert onto.min(axis=1).max() < 1e-9
        steps = primitive.lattice @ np.linalg.inv(crystal.lattice)
        offsets = steps[:, None] - wyckoff.centring(g)[None]
        assert np.abs(offsets - np.rint(offsets)).sum(axis=2).min(axis=1).max() < 1e-9
        if closest_approach(primitive.lattice, primitive.frac) > TOO_CLOSE:
            smallest = spglib.find_primitive((crystal.lattice, crystal.frac, crystal.numbers), symprec=1e-3)
            assert smallest is not None
            # Never more atoms than ours; fewer only where the drawn atoms happen to have more translations.
            assert len(primitive) % len(smallest[2]) == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(g=st.integers(1, 230), seed=st.integers(0, 2**32 - 1), sites=st.integers(1, 4))
def test_tokens_survive_the_way_to_the_crystal_and_back(g: int, seed: int, sites: int) -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    tokens = draw_tokens(g, np.random.default_rng(seed), sites=sites, max_multiplicity=24)
    crystal, primitive = conventional(tokens), to_crystals(tokens, primitive=True)[0]
    assert primitive is not None
    assume(len(primitive) == 1 or closest_approach(primitive.lattice, primitive.frac) > TOO_CLOSE)
    again = tokenize(primitive, max_sites=30)
    found = int(again.spacegroup[0])
    rebuilt = conventional(again)
    # The group found contains the group drawn: equal, or (few atoms, special places) truly more symmetric.
    per_atom_before, per_atom_after = order(g) / len(crystal), order(found) / len(rebuilt)
    assert found == g or per_atom_after > per_atom_before
    assert is_invariant(rebuilt, found)
    assert rebuilt.volume / len(rebuilt) == pytest.approx(crystal.volume / len(crystal), rel=1e-6)
    assert np.array_equal(
        np.bincount(rebuilt.numbers, minlength=119) * len(crystal),
        np.bincount(crystal.numbers, minlength=119) * len(rebuilt),
    )
    # Tight tolerances: nothing may have moved. Unscaled, conventional against conventional of the same group.
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, scale=False)
    assert matcher.fit(crystal.to_structure(), rebuilt.to_structure())
    assert int(tokenize(rebuilt, max_sites=30).spacegroup[0]) == found


@pytest.mark.parametrize("first", range(1, 231, 23))
def test_generic_crystals_keep_exactly_their_group(first: int) -> None:
    """Three general orbits of three elements in a generic cell have no symmetry but the group's own."""
    rng = np.random.default_rng(first)
    # Groups of at most 48 operations here: general orbits of the larger ones have hundreds of atoms.
    for g in (g for g in range(first, min(first + 23, 231)) if order(g) <= 48):
        top = int(wyckoff.n_letters()[g - 1])
        tokens = draw_tokens(g, rng, sites=1)
        tokens.wyckoff[0, :3], tokens.element[0, :3] = top, (14, 8, 9)
        tokens.coords[0, :3] = rng.random((3, 3))
        primitive = to_crystals(tokens, primitive=True)[0]
        assert primitive is not None
        if closest_approach(primitive.lattice, primitive.frac) < 0.05:
            continue  # several times the tolerance: closer pairs would be legitimate trouble for the search
        again = tokenize(primitive, symprec=1e-3)
        assert int(again.spacegroup[0]) == g
        np.testing.assert_array_equal(again.wyckoff[0, :4], [top, top, top, 0])
        before, after = conventional(tokens), conventional(again)
        assert after.volume == pytest.approx(before.volume, rel=1e-6)
        assert len(after) == len(before)
