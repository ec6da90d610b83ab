"""What ships says how it was trained: the settings of every run behind the weights, in order, and their course."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.common.files import write_json
from crystalforge.data.store import TokenStore
from crystalforge.model.checkpoint import load_model
from crystalforge.model.config import ModelConfig
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.pretrain import pretrain

RECIPES = Path(__file__).parents[3] / "recipes"
TINY = ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8)


def trained(store: TokenStore, out: Path, steps: int, start: Path | None = None, keep: float = 0.0) -> Path:
    """A run as the stage leaves it, with its record. keep: decay of the weights' moving average."""
    optimizer = OptimizerConfig(learning_rate=1e-2, ema_decay=keep)
    config = PretrainConfig(epochs=None, steps=steps, batch_size=8, log_every=1, optimizer=optimizer)
    found = pretrain(TINY, config, store, out, seed=steps, start=start)
    settings = {"seed": steps, "model": TINY.model_dump(mode="json"), "pretrain": config.model_dump(mode="json")}
    record = {"stage": "pretrain", "config": settings, "metrics": found.metrics, "mlflow_run_id": "mine"}
    write_json(out / "stage.json", record | {"content": str(steps)})
    return out


def with_groups(file: Path, groups: list[float]) -> dict[str, Any]:
    """A model's config.json with other space groups."""
    config = json.loads(file.read_text())
    return config | {"info": config["info"] | {"spacegroup_weights": groups}}


def script(name: str, *arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, str(RECIPES / name), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_record_that_ships_has_the_settings_of_all_runs(make_store, tmp_path: Path) -> None:
    store = make_store(24, 8, name="data/store")
    data = tmp_path / "data"
    first = trained(store, tmp_path / "first", 2)
    script("ship.py", first, data, tmp_path / "old")
    runs = [trained(store, tmp_path / f"run-{steps}", steps, start=first / "model") for steps in (3, 4)]
    records = [run / "stage.json" for run in runs]
    groups = load_model(first / "model").info["spacegroup_weights"]
    write_json(first / "model" / "config.json", with_groups(first / "model" / "config.json", groups[::-1]))
    models = [run / "model" for run in runs]
    script("average.py", data, tmp_path / "mean", *models, "--record", *records, "--groups", first / "model")
    assert load_model(tmp_path / "mean" / "model").info["spacegroup_weights"] == groups[::-1]
    said = tmp_path / "said.md"
    said.write_text("Trained by hand.\n")
    script("ship.py", tmp_path / "mean", data, tmp_path / "new", "--before", tmp_path / "old", "--training", said)

    record = json.loads((tmp_path / "new" / "stage.json").read_text())
    assert record["mlflow_run_id"] is None
    assert record["config"]["pretrain"]["steps"] == 3
    assert [run["config"]["pretrain"]["steps"] for run in record["averaged"]["runs"]] == [3, 4]
    assert [run["config"]["pretrain"]["steps"] for run in record["before"]] == [2]
    assert [run["metrics"]["steps"] for run in record["before"]] == [2]
    course = [json.loads(line)["step"] for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert course == sorted(course)
    assert course[-1] == 2 + 3, "that of the average's first run, after what came before it"
    states = [load_model(run / "model").model.state_dict() for run in runs]
    for name, value in load_model(tmp_path / "new" / "model").model.state_dict().items():
        assert value.numpy() == pytest.approx((states[0][name] + states[1][name]).numpy() / 2, abs=1e-6)
    assert "Trained by hand." in (tmp_path / "new" / "model" / "README.md").read_text()
    assert len(np.load(tmp_path / "new" / "model" / "fingerprints.npy")) >= 1

    script("ship.py", runs[1], data, tmp_path / "newest", "--before", tmp_path / "new", runs[0], "--training", said)
    record = json.loads((tmp_path / "newest" / "stage.json").read_text())
    assert [run["config"]["pretrain"]["steps"] for run in record["before"]] == [2, 3, 3]
    course = [json.loads(line)["step"] for line in (tmp_path / "newest" / "metrics.jsonl").read_text().splitlines()]
    assert course == sorted(course)
    assert course[-1] == 2 + 3 + 3 + 4


def test_of_a_snapshot_the_moving_average_counts(make_store, tmp_path: Path) -> None:
    store = make_store(24, 8, name="data/store")
    run = trained(store, tmp_path / "run", 4, keep=0.9)
    snapshot = max((run / "snapshots").iterdir())
    script("average.py", tmp_path / "data", tmp_path / "mean", run / "model", snapshot)
    expected = load_model(run / "model").model.state_dict()
    for name, value in load_model(tmp_path / "mean" / "model").model.state_dict().items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=1e-7)
