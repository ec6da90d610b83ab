"""`make run` as a user meets it: one command, real server, real pipeline engine, real registry; killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.xdist_group("run")]

FIGURES = ("mean_e_above_hull", "stable_rate", "unique_rate", "novel_rate", "sun_rate", "kl_to_base")


def start(params: Path, *arguments: str) -> subprocess.Popen[str]:
    log = (params.parent / "log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "crystalforge.cli", "run", "--config", str(params), *arguments],
        cwd=params.parent, stdout=log, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], params: Path) -> dict[str, Any]:
    code = process.wait(timeout=500)
    text = (params.parent / "log").read_text()
    assert code == 0, text[-4000:]
    return json.loads((params.parent / "runs" / "latest" / "summary.json").read_text())


def judged(summary: dict[str, Any]) -> Any:
    """What must not depend on when, where and how often interrupted."""
    return summary["models"], summary["comparison"], summary["content"]["pretrain"], summary["content"]["finetune"]


def in_finetune(runs: Path) -> bool:
    return any(runs.glob("*/finetune/metrics.jsonl"))


def test_the_main_job_and_its_resumption(tmp_path_factory: pytest.TempPathFactory, small: Path) -> None:
    summary = finish(start(small), small)
    place = small.parent / "runs" / "latest"

    for label in ("base", "tuned"):
        for name in FIGURES:
            figure = summary["models"][label]["metrics"][name]
            assert {"value", "low", "high"} <= figure.keys(), name
    assert (place / "evaluate" / "report.html").stat().st_size > 100_000
    text = (small.parent / "log").read_text()
    assert "fine-tuned" in text
    assert "report.html" in text
    assert "left" in text, "long stages show the time left"

    # Triton's own counters agree with what the run scored: fine-tuning's batches and both models' samples.
    counted = json.loads((place / "service.json").read_text())
    assert sum(counted["structures"].values()) == 4 * 24 + 2 * 24
    assert counted["failures"] == 0

    from crystalforge.integrations import mlflow as tracking

    api = tracking.client(f"sqlite:///{small.parent}/runs/mlflow.db")
    version = api.get_model_version_by_alias("crystalforge-generator", "candidate")
    assert version.tags["reward_digest"]
    parent = (place / "mlflow_run_id").read_text().strip()
    experiment = api.get_run(parent).info.experiment_id
    children = api.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_name for run in children} == {"ingest", "pretrain", "finetune", "evaluate", "register"}
    assert {run.info.status for run in children} == {"FINISHED"}

    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(f"sqlite:///{small.parent}/runs/mlflow.db")
    sampler = mlflow.pyfunc.load_model("models:/crystalforge-generator@candidate")
    written = sampler.predict(pd.DataFrame({"spacegroup": [225], "n": [3], "seed": [7]}))
    assert len(written) == 3
    assert (written["spacegroup"] == 225).all()

    # The same again, killed without warning while it fine-tunes, and started again.
    other = tmp_path_factory.mktemp("killed") / "params.yaml"
    other.write_text(small.read_text())
    process = start(other)
    deadline = time.monotonic() + 300
    while not in_finetune(other.parent / "runs"):
        assert process.poll() is None, (other.parent / "log").read_text()[-4000:]
        assert time.monotonic() < deadline, "fine-tuning never began"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = finish(start(other), other)
    assert judged(again) == judged(summary)
    assert len(list((other.parent / "runs").glob("2*"))) == 1, "the killed run went on in its own directory"


def test_a_reward_server_that_is_away_is_one_message_and_exit_code_2(small: Path) -> None:
    arguments = ["--set", "service.url=127.0.0.1:9", "--set", "service.patience_s=1", "--set", "pretrain.epochs=1"]
    process = start(small, *arguments)
    assert process.wait(timeout=300) == 2
    text = (small.parent / "log").read_text()
    assert "127.0.0.1:9" in text
    assert text.count("Traceback") == 0
    runs = small.parent / "runs" / "latest"
    assert (runs / "pretrain" / "stage.json").exists(), "what was computed is kept"
