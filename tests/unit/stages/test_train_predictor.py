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
from crystalforge.integrations.mlflow import registry, tracking
from crystalforge.stages.base import StaleOutputs
from crystalforge.stages.train_predictor import split_errors, train_predictor

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
    version = registry.version_of(tracking.client(str(config.tracking.uri)), record["metrics"]["uri"])
    assert version.name == "crystalforge-predictor"
    assert version.tags["model_hash"] == record["content"]
    assert "predicting the training median" in str(version.description)
    api = tracking.client(str(config.tracking.uri))
    fetched = registry.download(api, f"models:/{version.name}/{version.version}", tmp_path / "fetched")
    assert {path.name for path in fetched.iterdir()} >= {
        path.name for path in (tmp_path / "out" / "predictor" / "model").iterdir()
    }
    logged = api.get_logged_model(version.tags["logged_model"])
    assert (logged.status.name, logged.model_type, logged.source_run_id) == ("READY", "predictor", version.run_id)
    assert {each.key: each.value for each in logged.metrics or []}["mae_test"] == record["metrics"]["mae_test"]
    assert json.loads((tmp_path / "out" / "registered.json").read_text())["version"] == str(version.version)

    assert train_predictor(config, tmp_path / "out") == record, "done before"
    weights = tmp_path / "out" / "predictor" / "model"
    before = {path: path.stat().st_mtime_ns for path in weights.iterdir()}
    elsewhere = from_sections(
        **config.sections(("seed", "predictor", "register")),
        tracking=config.sections(("tracking",))["tracking"] | {"uri": f"sqlite:///{tmp_path}/other.db"},
    )
    again = train_predictor(elsewhere, tmp_path / "out")
    there = registry.version_of(tracking.client(f"sqlite:///{tmp_path}/other.db"), again["metrics"]["uri"])
    assert there.tags["model_hash"] == record["content"], "another registry gets it too"
    assert {path: path.stat().st_mtime_ns for path in weights.iterdir()} == before, "without training again"
    write_table(tmp_path / "table.parquet", 1)
    with pytest.raises(StaleOutputs):  # same path, other rows
        train_predictor(config, tmp_path / "out")


def test_errors_have_intervals_per_crystal(tmp_path: Path) -> None:
    """Two crystals of the test split: components off by 1 and 3, constants off by 1 and 1 (one cancels)."""
    header = ["table", "index", "split"]
    names = ("eps_xx", "eps_yy", "eps_zz")
    header += [column for name in names for column in (name, f"{name}_predicted")]
    rows = [
        "0,0,train,4,4,4,4,4,4",
        "0,1,val,4,4,4,4,4,4",
        "0,2,test,5,6,5,6,5,6",
        "0,3,test,5,8,5,8,5,2",
    ]
    (tmp_path / "parity.csv").write_text("\n".join([",".join(header), *rows]) + "\n")
    found = split_errors(tmp_path / "parity.csv", names)
    assert found["mae_test"] == pytest.approx(2.0)
    assert found["mae_test_constant"] == pytest.approx(1.0)
    assert found["baseline_mae_test"] == found["baseline_mae_test_constant"] == pytest.approx(1.0)
    assert found["gain_test"] == pytest.approx(-1.0)
    # Student's t with one degree of freedom: 12.706 standard errors, here 1.
    assert found["mae_test_high"] - found["mae_test"] == pytest.approx(12.706, abs=1e-3)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictor section"):
        train_predictor(Config(), tmp_path / "out")
    with pytest.raises(InputError, match=r"table\.parquet: no such file"):
        train_predictor(config_for(tmp_path), tmp_path / "out")
