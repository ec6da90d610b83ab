"""The stage around a predictor's training: done once, done anew when the table changed, registered with its plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.integrations import mlflow as tracking
from crystalforge.stages.base import StaleOutputs
from crystalforge.stages.train_predictor import train_predictor

pytest.importorskip("matgl")


def write_table(path: Path, seed: int) -> None:
    """Caesium chlorides whose 'gap' falls with the lattice constant."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(20):
        a = float(rng.uniform(3.8, 4.8))
        rows.append(
            {
                "lattice": (a * np.eye(3)).ravel().tolist(),
                "atomic_numbers": [55, 17],
                "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
                "gap": 5 - a,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


def config_for(root: Path) -> Config:
    settings = {"targets": ["gap"], "epochs": 1, "batch_size": 8, "units": 8, "blocks": 1, "cutoff": 4.5}
    return from_sections(
        predictor={"data": str(root / "table.parquet"), **settings},
        tracking={"uri": f"sqlite:///{root}/mlflow.db", "directory": str(root)},
    )


def test_it_trains_reports_and_registers_once(tmp_path: Path) -> None:
    write_table(tmp_path / "table.parquet", 0)
    config = config_for(tmp_path)
    record = train_predictor(config, tmp_path / "out")
    assert record["metrics"]["n_train"] == 16
    page = (tmp_path / "out" / "parity.html").read_text()
    assert "gap: test error" in page
    assert "<script src" not in page
    version = tracking.version_of(tracking.client(str(config.tracking.uri)), record["metrics"]["uri"])
    assert version.name == "crystalforge-predictor"
    assert version.tags["model_hash"] == record["content"]
    assert "predicting the training median" in version.description
    api = tracking.client(str(config.tracking.uri))
    fetched = tracking.download(api, f"models:/{version.name}/{version.version}", tmp_path / "fetched")
    assert {path.name for path in fetched.iterdir()} >= {
        path.name for path in (tmp_path / "out" / "predictor" / "model").iterdir()
    }
    assert json.loads((tmp_path / "out" / "registered.json").read_text())["version"] == str(version.version)

    assert train_predictor(config, tmp_path / "out") == record, "done before"
    write_table(tmp_path / "table.parquet", 1)
    with pytest.raises(StaleOutputs):  # same path, other rows
        train_predictor(config, tmp_path / "out")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictor section"):
        train_predictor(Config(), tmp_path / "out")
    with pytest.raises(InputError, match=r"table\.parquet: no such file"):
        train_predictor(config_for(tmp_path), tmp_path / "out")
