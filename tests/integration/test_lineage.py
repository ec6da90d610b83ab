"""From a generated crystal back to the version of the data: every link is there, and each is the right one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from crystalforge.config import Config, from_sections
from crystalforge.crystal.convert import to_crystals
from crystalforge.integrations.mlflow import registry, tracking
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.model.sampling.sampler import sample
from crystalforge.platform.fetch import fetch
from crystalforge.rewards import build
from crystalforge.rewards.golden import golden_values
from crystalforge.stages.evaluate import evaluate
from crystalforge.stages.finetune import finetune
from crystalforge.stages.ingest import ingest
from crystalforge.stages.pretrain import pretrain
from crystalforge.stages.register import register

ROWS = 120
FLOAT32 = 1e-5  # another batch size rounds the sampler's sums in another order


def tracked_by_dvc(place: Path) -> Path:
    """Some of the embedded crystals in a file that DVC tracks."""
    from crystalforge.data.sources.tables import embedded

    file = place / "crystals.parquet"
    table = pq.read_table(embedded().file)
    known = np.flatnonzero([split != "reference" for split in table["split"].to_pylist()])
    pq.write_table(table.take(known[:ROWS]).drop_columns(["split"]), file)
    for command in (["init", "--no-scm", "--quiet"], ["add", "--quiet", file.name]):
        dvc = [sys.executable, "-m", "dvc", *command]
        subprocess.run(dvc, cwd=place, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the outputs of all stages over data that DVC tracks."""
    root = tmp_path_factory.mktemp("lineage")
    config = settings(root, tracked_by_dvc(root))
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    for name in before:  # of other tests
        del os.environ[name]
    try:
        ingest(config, root / "data")
        pretrain(config, root / "data", root / "base")
        finetune(config, root / "data", root / "base", root / "tuned")
        evaluate(config, root / "data", root / "base", root / "tuned", root / "judged")
        register(config, root / "base", root / "tuned", root / "judged", root / "registered")
    finally:
        os.environ.update(before)
    return root


def settings(root: Path, source: Path) -> Config:
    return from_sections(
        data={"source": {"kind": "parquet", "path": str(source)}, "split": {"mode": "formula"}},
        model={"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "dropout": 0.0},
        pretrain={"epochs": 1, "batch_size": 64},
        reward={"kind": "property", "source": {"kind": "descriptor", "quantity": "n_elements"}},
        service={"mode": "in-process"},
        finetune={"steps": 1, "batch_size": 8},
        evaluate={"samples": 6, "nearest": False, "gallery": 1, "candidates": 5},
        tracking={"uri": f"sqlite:///{root}/mlflow.db", "directory": str(root)},
    )


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "stage.json").read_text())


def test_a_crystal_leads_back_to_the_version_of_its_data(place: Path) -> None:
    api = tracking.client(f"sqlite:///{place}/mlflow.db")
    config = settings(place, place / "crystals.parquet")
    rows = pq.read_table(place / "judged" / "crystals.parquet").to_pylist()
    built = [row["index"] for row in rows if row["label"] == "base" and row["n_atoms"]]
    number = next(row["index"] for row in rows if row["label"] == "tuned" and row["n_atoms"] and row["index"] in built)
    row = next(row for row in rows if row["label"] == "tuned" and row["index"] == number)

    # The run that judged it, and what that run says of reward and data.
    run = api.get_run(row["run_id"])
    version = yaml.safe_load((place / "crystals.parquet.dvc").read_text())["outs"][0]["md5"]
    assert run.data.tags["lineage.data_version"] == version
    assert run.data.tags["lineage.data_hash"] == row["data_hash"] == record(place / "data")["content"]
    reward = build(config.reward)
    assert run.data.tags["lineage.reward_digest"] == reward.version.digest
    assert row["reward_version"] == str(reward.version)
    golden = json.loads(run.data.tags["lineage.reward_golden"])
    assert golden == golden_values(reward)
    assert golden
    assert run.data.tags["input.tuned"] == row["model_hash"] == record(place / "tuned")["content"]

    # The model in the registry that wrote it or its base, with the same lineage.
    found = registry.version_of(api, f"models:/{config.register_.name}@candidate")
    label = found.tags["model"]
    assert found.tags["data_version"] == version
    assert found.tags["data_hash"] == row["data_hash"]
    assert found.tags["reward_digest"] == reward.version.digest
    assert json.loads(found.tags["reward_golden"]) == golden
    assert found.tags["evaluation_run_id"] == row["run_id"]
    assert version in found.description, "the model card says so too"

    # And that model, asked for the sample of this number, writes this very crystal.
    mine = next(row for row in rows if row["label"] == label and row["index"] == number)
    fetched = fetch(config, f"models:/{config.register_.name}@candidate", place / "fetched")
    assert fetched["lineage"]["data_version"] == version
    model = load_model(place / "fetched" / "model").model
    assert weights_hash(model) == mine["model_hash"]
    drawn = sample(model, np.array([mine["spacegroup"]]), seed=mine["seed"], first_index=mine["index"])
    assert float(drawn.total_log_prob[0]) == pytest.approx(mine["log_prob"], abs=1e-4)
    (crystal,) = to_crystals(drawn.tokens, primitive=True)
    assert crystal is not None
    np.testing.assert_array_equal(crystal.numbers, mine["atomic_numbers"])
    np.testing.assert_allclose(crystal.frac.ravel(), mine["frac_coords"], atol=FLOAT32)


def test_every_stage_carries_the_version_on(place: Path) -> None:
    version = yaml.safe_load((place / "crystals.parquet.dvc").read_text())["outs"][0]["md5"]
    for name in ("data", "base", "tuned", "judged", "registered"):
        assert record(place / name)["lineage"]["data_version"] == version, name
    assert "reward_digest" not in record(place / "base")["lineage"], "no reward had a part in it"


def test_another_version_of_the_data_is_not_taken_for_the_first(place: Path) -> None:
    config = settings(place, place / "crystals.parquet")
    before = record(place / "data")
    again = ingest(config, place / "other", data_version="0" * 32)
    assert again["content"] == before["content"], "the very same crystals"
    assert again["key"] != before["key"], "and yet another version of them"
