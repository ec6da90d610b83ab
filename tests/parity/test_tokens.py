"""Structure -> tokens agrees with the reference implementation on all 413 fixture crystals, and comes back."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import Crystal, PackedCrystals, wyckoff
from crystalforge.crystal.convert import Tokenized, to_crystals, tokenize_many

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("CRYSTALFORGE_SHARED", HERE.parents[2] / "shared"))
COORDINATE_TOLERANCE = 1e-6
LATTICE_TOLERANCE = 1e-9


@cache
def crystals() -> list[Crystal]:
    """The fixture crystals: random and real, as P1, primitive, symmetrised, noisy and shifted cells."""
    with np.load(HERE / "tokenizer_structures.npz") as archive:
        packed = PackedCrystals(
            archive["lattice"], archive["n_atoms"], archive["numbers"].astype(np.int32), archive["frac"]
        )
    return [crystal for crystal in packed.unpack() if crystal is not None]


@cache
def reference() -> dict[str, np.ndarray]:
    with np.load(HERE / "tokenizer.npz") as archive:
        return dict(archive)


@cache
def tokenized() -> Tokenized:
    return tokenize_many(crystals())


def test_the_fixtures_cover_space_groups_cells_and_lengths() -> None:
    fixture = reference()
    assert len(crystals()) == len(fixture["G"]) == 413
    assert len(np.unique(fixture["G"])) == 229
    assert fixture["num_sites"].max() == 20
    with np.load(HERE / "tokenizer_structures.npz") as archive:
        np.testing.assert_array_equal(archive["ids"], fixture["ids"])


def test_no_fixture_crystal_is_rejected() -> None:
    assert tokenized().rejects == []
    np.testing.assert_array_equal(tokenized().index, np.arange(413))


def test_space_groups_letters_and_elements_agree_in_order() -> None:
    tokens, fixture = tokenized().tokens, reference()
    np.testing.assert_array_equal(tokens.spacegroup, fixture["G"])
    np.testing.assert_array_equal(tokens.wyckoff, fixture["W"])
    np.testing.assert_array_equal(tokens.element, fixture["A"])
    np.testing.assert_array_equal(tokens.n_sites, fixture["num_sites"])


def test_coordinates_agree() -> None:
    tokens = tokenized().tokens
    np.testing.assert_allclose(tokens.coords, reference()["XYZ"], rtol=0, atol=COORDINATE_TOLERANCE)
    assert (tokens.coords[~tokens.is_site] == 0).all()
    assert tokens.coords.min() >= 0
    assert tokens.coords.max() < 1


def test_lattices_agree() -> None:
    np.testing.assert_allclose(tokenized().tokens.lattice, reference()["L64"], rtol=0, atol=LATTICE_TOLERANCE)


@pytest.mark.parametrize("part", range(4))
def test_tokens_give_back_the_crystal(part: int) -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher, rows = StructureMatcher(), slice(part, None, 4)
    given, tokens = crystals()[rows], tokenized().tokens[rows]
    for place, (before, after) in enumerate(zip(given, to_crystals(tokens), strict=True)):
        assert after is not None
        assert matcher.fit(before.to_structure(), after.to_structure()), f"fixture {part + 4 * place}"


@pytest.mark.parametrize("primitive", [False, True])
def test_tokens_give_back_the_space_group(primitive: bool) -> None:
    import spglib

    tokens = tokenized().tokens
    for g, crystal in zip(tokens.spacegroup, to_crystals(tokens, primitive=primitive), strict=True):
        assert crystal is not None
        # A tenth of the tolerance of tokenising: what comes back is exact, not approximately symmetric.
        found = spglib.get_symmetry_dataset((crystal.lattice, crystal.frac, crystal.numbers), symprec=1e-3)
        assert found is not None
        assert found.number == g


def reference_tokens(crystal: Crystal) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Group, letters, elements, coordinates and cell as the reference reads them: pymatgen, then pyxtal."""
    from pymatgen.core import Element
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from pyxtal import pyxtal

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refined = SpacegroupAnalyzer(crystal.to_structure(), symprec=0.01).get_refined_structure()
        for tolerance in (0.01, 1e-4):
            try:
                reading = pyxtal()
                reading.from_seed(refined, tol=tolerance)
                break
            except Exception:  # the reference catches everything here
                if tolerance == 1e-4:
                    raise
    letters = np.array([wyckoff.letter_index(site.wp.letter) for site in reading.atom_sites])
    coords = np.array([site.position for site in reading.atom_sites], dtype=np.float64)
    elements = np.array([Element(site.specie).Z for site in reading.atom_sites])
    coords = (coords - np.floor(coords)).astype(np.float32)
    order = np.lexsort((coords[:, 2], coords[:, 1], coords[:, 0], letters))
    cell = np.array(reading.lattice.get_para(), dtype=np.float64)
    cell[:3] /= np.cbrt(wyckoff.multiplicity()[reading.group.number - 1, letters].sum())
    return reading.group.number, letters[order], elements[order], coords[order], cell


def assert_agrees(given: list[Crystal]) -> None:
    result = tokenize_many(given, max_sites=300)
    assert result.rejects == []
    for row, crystal in enumerate(given):
        g, letters, elements, coords, cell = reference_tokens(crystal)
        tokens, n = result.tokens[row], len(letters)
        assert (int(tokens.spacegroup[0]), int(tokens.n_sites[0])) == (g, n), f"crystal {row}"
        np.testing.assert_array_equal(tokens.wyckoff[0, :n], letters)
        np.testing.assert_array_equal(tokens.element[0, :n], elements)
        np.testing.assert_allclose(tokens.coords[0, :n], coords, rtol=0, atol=COORDINATE_TOLERANCE)
        np.testing.assert_allclose(tokens.lattice[0], cell, rtol=0, atol=1e-7)


def test_agrees_with_pyxtal_on_crystals_distorted_up_to_the_tolerance() -> None:
    """Noise near the tolerance is where a group can change between the steps of the search."""
    rng = np.random.default_rng(7)
    distorted = []
    for crystal in crystals()[::20]:
        noise = rng.uniform(-0.004, 0.004, (len(crystal), 3)) @ np.linalg.inv(crystal.lattice)
        distorted.append(Crystal(crystal.lattice, crystal.numbers, crystal.frac + noise))
    assert_agrees(distorted)


# Rows whose symmetry rises when they are refined, whose orbits merge, or which lie in the commonest cubic
# groups.
MP20_ROWS = (6398, 15230, 23656, 26135, 32843, 33886, *range(0, 38000, 1000))


def test_agrees_with_pyxtal_on_real_crystals() -> None:
    path = SHARED / "data" / "mp20" / "mp20.parquet"
    if not path.exists():
        pytest.skip(f"no reference data: {path} is not there")
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["lattice", "atomic_numbers", "frac_coords"])
    rows = table.take(list(MP20_ROWS)).to_pylist()
    assert_agrees([Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]) for row in rows])
