"""Shipped models by name, and what a base model says of its training set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal.tokens import Tokens
from crystalforge.data.fingerprint import fingerprints, orbit_codes
from crystalforge.data.store import Rows, TokenStore
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample
from crystalforge.stages.models import (
    asked_shares,
    find_base,
    find_model,
    shipped,
    spacegroup_weights,
    training_fingerprints,
)
from crystalforge.tools.crystals import sample as sample_to_files

LARGEST = 20 * 2**20  # bytes of a shipped model: it travels with every checkout


def test_every_shipped_model_is_whole_small_and_says_where_it_comes_from() -> None:
    assert "mp20" in shipped()
    for name, place in shipped().items():
        assert sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) < LARGEST
        loaded = load_model(place / "model")
        record = json.loads((place / "stage.json").read_text())
        assert record["stage"] == "pretrain"
        assert record["content"] == json.loads((place / "model" / "config.json").read_text())["weights_sha256"]
        card = (place / "model" / "README.md").read_text()
        for factor in ("wyckoff", "element", "coords", "lattice"):
            assert f"| {factor} | {record['metrics'][f'val/nll_{factor}']:.2f} |" in card
        assert "CC-BY 4.0" in card
        assert "Materials Project" in card
        assert f"--model {name}" in card
        assert np.isclose(sum(loaded.info["spacegroup_weights"]), 1.0)


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_base(Path("mp20")) == shipped()["mp20"]
    assert find_model(Path("mp20")) == shipped()["mp20"] / "model"
    (tmp_path / "mp20").mkdir()  # MP-20's own files, perhaps: no model, so the name still means the shipped one
    assert find_model(Path("mp20")) == shipped()["mp20"] / "model"
    with pytest.raises(InputError, match="one of: mp, mp20"):
        find_model(Path("mp21"))
    with pytest.raises(InputError, match="one of: mp, mp20"):
        find_base(Path("mp21"))


@pytest.mark.parametrize("name", ["mp", "mp20"])
def test_a_shipped_model_writes_crystals_by_its_name(name: str, tmp_path: Path) -> None:
    done = sample_to_files(Path(name), tmp_path / "out", 60, seed=3)
    table = pq.read_table(tmp_path / "out" / "part-00000000.parquet")
    assert done["built"] >= 57, "it has learned to close a crystal"
    weights = load_model(find_model(Path(name))).info["spacegroup_weights"]
    assert all(weights[group - 1] > 0 for group in table.column("spacegroup").to_pylist())


def test_most_of_what_the_shipped_model_writes_is_new_and_some_is_known() -> None:
    known = training_fingerprints(find_model(Path("mp20")), None)
    assert known is not None
    assert len(known) > 20_000
    drawn = sample(load_model(find_model(Path("mp20"))).model, np.full(60, 225), seed=0).tokens
    nothing = Reference.from_tokens(drawn[:0], [])
    share = nothing.remembering(known).remembers(drawn).mean()
    assert 0.1 < share < 0.9, "rock salts, fluorites and elpasolites of its training set are among them"
    assert not nothing.remembers(drawn).any()


@pytest.fixture
def tokens() -> Tokens:
    torch.manual_seed(0)
    config = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8)
    return sample(CrystalFormer(config), np.repeat([221, 225], 6), seed=1).tokens


def test_space_groups_come_from_the_model_and_else_from_the_data(tmp_path: Path, tokens: Tokens) -> None:
    rows = Rows.of(tokens, [str(n) for n in range(12)], split=np.zeros(12, np.int8), fingerprint=fingerprints(tokens))
    sites, id_bytes = rows.wyckoff.size, sum(map(len, rows.ids))
    TokenStore.write(tmp_path / "data" / "store", [rows], rows=12, sites=sites, id_bytes=id_bytes)
    model = CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8))
    save_model(tmp_path / "imported", model, info={})
    found = spacegroup_weights(tmp_path / "imported", tmp_path / "data")
    assert found[220] == found[224] == pytest.approx(0.5)
    shares = np.zeros(230)
    shares[0] = 1.0
    save_model(tmp_path / "trained", model, info={"spacegroup_weights": shares.tolist()})
    np.testing.assert_array_equal(spacegroup_weights(tmp_path / "trained", tmp_path / "data"), shares)


def test_fingerprints_count_only_where_the_training_set_is_not_at_hand(tmp_path: Path, tokens: Tokens) -> None:
    model = CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8))
    save_model(tmp_path / "model", model, info={"data_hash": "mine"})
    assert training_fingerprints(tmp_path / "model", "other") is None, "a model that brings none"
    np.save(tmp_path / "model" / "fingerprints.npy", np.array([3, 5], np.uint64))
    assert training_fingerprints(tmp_path / "model", "mine") is None
    np.testing.assert_array_equal(training_fingerprints(tmp_path / "model", "other"), [3, 5])


def test_a_remembered_crystal_is_known_to_a_reference_and_changes_its_identity(tokens: Tokens) -> None:
    empty = Reference.from_tokens(tokens[:0], [])
    half = orbit_codes(fingerprints(tokens[:1]))
    knowing = empty.remembering(half)
    assert knowing.remembers(tokens)[0]
    assert knowing.digest != empty.digest
    assert not empty.remembers(tokens).any()


def test_a_model_that_learned_which_groups_to_ask_for_says_so(tmp_path: Path) -> None:
    weights, tilt = np.zeros(230), np.zeros(230)
    weights[[0, 1, 224]] = [2.0, 1.0, 1.0]
    tilt[[0, 224]] = [-1.0, 0.5]
    model = CrystalFormer(ModelConfig(layers=1, heads=1, head_size=8, width=16, embedding=8))
    save_model(tmp_path / "plain", model, info={})
    save_model(tmp_path / "tilted", model, info={"spacegroup_tilt": tilt.tolist()})
    assert asked_shares(tmp_path / "plain", weights) is weights
    expected = np.array([2 * np.exp(-1.0), 1.0, np.exp(0.5)])
    found = asked_shares(tmp_path / "tilted", weights)
    np.testing.assert_allclose(found[[0, 1, 224]], expected / expected.sum(), atol=1e-12)
    assert np.flatnonzero(found).tolist() == [0, 1, 224]
