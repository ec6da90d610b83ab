"""Keys: equal for one reduced formula, or one prototype, and for nothing else."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import to_crystals, tokenize_many
from crystalforge.crystal.keys import composition_key, composition_keys, element_counts, prototype_keys
from crystalforge.evaluation.validity import reduced_composition
from tests.unit.crystal.conftest import crystals

SALT, SAME, CAESIUM, OTHER = (225, "ab", [11, 17]), (225, "ab", [17, 11]), (221, "ab", [11, 17]), (225, "ab", [3, 9])
FLUORITE, ELEMENT, PAIR = (225, "ac", [20, 9]), (225, "ab", [11, 11]), (225, "aab", [11, 17, 17])


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Of the first of the embedded crystals."""
    import pyarrow.parquet as pq

    rows = pq.read_table(str(files("crystalforge.data") / "prototypes.parquet")).slice(0, 120).to_pylist()
    return tokenize_many([Crystal.of(r["lattice"], r["atomic_numbers"], r["frac_coords"]) for r in rows]).tokens


def test_tokens_and_crystals_have_the_same_composition(tokens: Tokens):
    expected = [composition_key(reduced_composition(c)) for c in to_crystals(tokens) if c is not None]
    assert composition_keys(element_counts(tokens)).tolist() == expected
    distinct = {reduced_composition(c) for c in to_crystals(tokens) if c is not None}
    assert len(set(expected)) == len(distinct) > 20


def test_prototype_ignores_elements_and_nothing_else(tokens: Tokens):
    one = tokens[np.flatnonzero(tokens.n_sites >= 2)[:1]]
    elements = np.unique(one.element[one.element > 0])
    swapped = one.element.copy()
    swapped[one.element == elements[0]] = 55
    same = Tokens(one.spacegroup, one.wyckoff, swapped, one.coords, one.lattice)
    assert prototype_keys(same) == prototype_keys(one)
    merged = Tokens(
        one.spacegroup, one.wyckoff, np.where(one.element > 0, 55, 0).astype(np.int32), one.coords, one.lattice
    )
    assert len(elements) > 1
    assert prototype_keys(merged) != prototype_keys(one)
    moved = Tokens(one.spacegroup % 230 + 1, one.wyckoff, one.element, one.coords, one.lattice)
    assert prototype_keys(moved) != prototype_keys(one)


def test_one_formula_whatever_the_structure():
    keys = composition_keys(element_counts(crystals(SALT, SAME, CAESIUM, OTHER, FLUORITE, ELEMENT))).tolist()
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 4


def test_one_prototype_whatever_the_elements():
    keys = prototype_keys(crystals(SALT, SAME, OTHER, CAESIUM, FLUORITE, ELEMENT, PAIR)).tolist()
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 5
