"""Looking up known crystals: composition buckets, the four kinds of nearest relative."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import to_crystals, tokenize_many
from crystalforge.crystal.keys import composition_key, prototype_keys
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.validity import reduced_composition


@pytest.fixture(scope="module")
def known() -> tuple[Tokens, list[str]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(str(files("crystalforge.data") / "prototypes.parquet")).slice(0, 120).to_pylist()
    crystals = [Crystal.of(r["lattice"], r["atomic_numbers"], r["frac_coords"]) for r in rows]
    found = tokenize_many(crystals)
    return found.tokens, [rows[i]["id"] for i in found.index]


def test_rows_of_a_composition_are_found_whatever_the_source(known):
    tokens, ids = known
    by_tokens = Reference.from_tokens(tokens, ids)
    crystals = [c for c in to_crystals(tokens, primitive=True) if c is not None]
    by_crystals = Reference.from_crystals(crystals, ids)
    for row in (0, 7, 50):
        key = composition_key(reduced_composition(crystals[row]))
        assert row in by_tokens.rows_of(key)
        assert by_tokens.rows_of(key).tolist() == by_crystals.rows_of(key).tolist()
        assert all(
            reduced_composition(c) == reduced_composition(crystals[row])
            for c in by_tokens.crystals(by_tokens.rows_of(key))
            if c is not None
        )
    assert by_tokens.ids(np.array([7])) == [ids[7]]
    assert len(by_tokens.rows_of(composition_key(((118, 1), (1, 1))))) == 0
    assert by_tokens.digest != Reference.from_tokens(tokens[1:], ids[1:]).digest


def test_nearest_prefers_formula_then_structure_type_then_chemistry():
    def salt(a: int, b: int) -> Tokens:
        return Tokens(
            np.array([225], np.int32), np.array([[1, 2, 0]], np.int32), np.array([[a, b, 0]], np.int32),
            np.array([[[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]], float), np.array([[2.8, 2.8, 2.8, *[np.pi / 2] * 3]]),
        )  # fmt: skip

    store = Tokens.concatenate([salt(11, 17), salt(19, 35), salt(56, 8)])
    reference = Reference.from_tokens(store, ["NaCl", "KBr", "BaO"])
    prototype = int(prototype_keys(salt(3, 9))[0])
    polymorph = reference.nearest_by_chemistry(((19, 1), (35, 1)), None)
    assert polymorph is not None
    assert (polymorph.row, polymorph.kind, polymorph.distance) == (1, "polymorph", 0.0)
    relative = reference.nearest_by_chemistry(((38, 1), (8, 1)), prototype)
    assert relative is not None
    assert (relative.row, relative.kind) == (2, "isostructural")
    # Strontium and barium are neighbours on Pettifor's scale, and half of the atoms move: half a step on average.
    assert relative.distance == pytest.approx(0.5)
    assert reference.nearest_by_chemistry(((38, 1), (8, 1)), None) is None
    (similar,) = reference.similar([((38, 1), (8, 2))])
    assert (similar.row, similar.kind) == (2, "similar")
    assert similar.distance > 0.5


def test_reference_from_a_store_is_that_of_its_training_split(known, tmp_path):
    from crystalforge.data.store import Rows, TokenStore

    tokens, ids = known
    split = (np.arange(len(ids)) % 3).astype(np.int8)  # train, val, test in turn
    rows = Rows.of(tokens, ids, split=split)
    TokenStore.write(
        tmp_path / "store",
        [rows],
        rows=len(ids),
        sites=int(tokens.n_sites.sum()),
        id_bytes=sum(len(i.encode()) for i in ids),
    )
    reference = Reference.from_store(TokenStore.open(tmp_path / "store"))
    expected = Reference.from_tokens(tokens[split == 0], [i for i, s in zip(ids, split, strict=True) if s == 0])
    assert len(reference) == len(expected) == (split == 0).sum()
    assert reference.keys.tolist() == expected.keys.tolist()
    key = int(expected.keys[5])
    assert reference.ids(reference.rows_of(key)) == expected.ids(expected.rows_of(key))
    assert reference.counts(np.array([5])).tolist() == expected.counts(np.array([5])).tolist()
