"""What goes into the store comes out of it; a damaged one says so."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Tokens
from crystalforge.data.store import Rows, TokenStore


def assert_same(ours: Tokens, theirs: Tokens) -> None:
    for field in fields(Tokens):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        assert a.shape == b.shape
        # float32 in the store: half a unit in the last place of numbers up to 2
        np.testing.assert_allclose(a, b, rtol=0, atol=1.2e-7)


def test_tokens_come_back(store, make):
    tokens = make.random_tokens(1000)
    rows = np.random.default_rng(5).permutation(1000)[:77]
    assert_same(store.tokens(rows), tokens[rows])
    assert_same(store.tokens(slice(10, 20)), tokens[10:20])
    assert_same(store.tokens(-1), tokens[999])
    assert_same(store.tokens(tokens.spacegroup < 50), tokens[tokens.spacegroup < 50])
    assert len(store.tokens([])) == 0


def test_pads_are_exactly_zero(store):
    tokens = store.tokens(slice(None), slots=25)
    assert not tokens.coords[~tokens.is_site].any()
    assert not tokens.element[~tokens.is_site].any()


def test_columns_names_and_splits(store, make):
    rows = make.random_rows(1000)
    assert store.ids([3, 999]) == [rows.ids[3], rows.ids[999]]
    np.testing.assert_array_equal(store.column("e_above_hull"), rows.e_above_hull)
    assert np.array_equal(store.split("test"), np.flatnonzero(rows.split == 2))
    assert np.array_equal(store.reference(), np.flatnonzero(rows.split == -1))
    assert store.manifest["counts"]["val"] == int((rows.split == 1).sum())
    weights = store.spacegroup_weights("train")
    assert weights.sum() == pytest.approx(1)
    assert weights[rows.spacegroup[rows.split == 0][0] - 1] > 0


def test_columns_are_mapped_not_loaded(store):
    assert isinstance(store.column("coords"), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.column("coords")[0] = 1


def test_the_hash_is_of_the_content_not_of_the_cuts(tmp_path, make):
    rows = make.random_rows(100)
    first = np.arange(100) < 37
    cut = make.write_rows(tmp_path / "cut", [rows.take(first), rows.take(~first)])
    whole = make.write_rows(tmp_path / "whole", [rows])
    assert cut.manifest == whole.manifest
    rows.coords[5, 0] += 1e-3
    assert make.write_rows(tmp_path / "other", [rows]).manifest["data_hash"] != whole.manifest["data_hash"]


def test_rows_pass_from_store_to_store(tmp_path, store, make):
    index = np.array([7, 3, 500])
    moved = store.rows(index, split=np.zeros(3, np.int8))
    copy = make.write_rows(tmp_path / "copy", [moved])
    assert copy.ids() == store.ids(index)
    assert_same(copy.tokens(slice(None)), store.tokens(index))
    assert copy.split("train").tolist() == [0, 1, 2]


def test_an_empty_store(tmp_path, make):
    nothing = Rows.of(Tokens.empty(), [], split=np.zeros(0, np.int8))
    store = make.write_rows(tmp_path / "empty", [nothing])
    assert len(store) == len(store.tokens(slice(None))) == 0
    with pytest.raises(InputError, match="empty"):
        store.spacegroup_weights()


def test_damage_is_named(tmp_path, store):
    with pytest.raises(InputError, match="no token store"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no split 'dev'"):
        store.split("dev")
    with pytest.raises(InputError, match="no column 'colour'"):
        store.column("colour")
    with pytest.raises(IndexError, match="1000 rows"):
        store.tokens([1000])
    np.save(store.path / "element.npy", np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="column element has 3 entries"):
        TokenStore.open(store.path)
    (store.path / "element.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"element\.npy"):
        TokenStore.open(store.path)
    manifest = store.path / "manifest.json"
    manifest.write_text(json.dumps(store.manifest | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        TokenStore.open(store.path)
    manifest.write_text("{")
    with pytest.raises(InputError, match="manifest is damaged"):
        TokenStore.open(store.path)


def test_a_store_interrupted_while_replaced_is_found(tmp_path, store):
    store.path.rename(store.path.with_name(".store.old"))
    assert len(TokenStore.open(store.path)) == 1000
