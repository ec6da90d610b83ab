"""`make run` as a user meets it: one command, real server, real pipeline engine, real registry; killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]
Small = Callable[[str], Path]
FIGURES = ("mean_e_above_hull", "stable_rate", "unique_rate", "novel_rate", "sun_rate", "kl_to_base")


def start(params: Path, *arguments: str) -> subprocess.Popen[str]:
    log = (params.parent / "log").open("a")
    # MLflow leaves its address in the environment of whoever talked to it, as other tests do.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.Popen(
        [sys.executable, "-m", "crystalforge.cli", "run", "--config", str(params), *arguments],
        cwd=params.parent, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], params: Path) -> None:
    code = process.wait(timeout=500)
    assert code == 0, (params.parent / "log").read_text()[-4000:]


def judged(summary: dict[str, Any]) -> Any:
    """What must not depend on when, where and how often interrupted."""
    return summary["models"], summary["comparison"], summary["content"]["pretrain"], summary["content"]["finetune"]


@pytest.fixture(scope="module")
def undisturbed(small: Small) -> Path:
    """The directory of one whole run."""
    params = small("undisturbed")
    finish(start(params), params)
    return params.parent


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "runs" / "latest" / "summary.json").read_text())


def test_the_run_ends_with_figures_intervals_and_paths(undisturbed: Path) -> None:
    summary = summary_of(undisturbed)
    for label in ("base", "tuned"):
        for name in FIGURES:
            figure = summary["models"][label]["metrics"][name]
            assert {"value", "low", "high"} <= figure.keys(), name
    assert (undisturbed / "runs" / "latest" / "evaluate" / "report.html").stat().st_size > 100_000
    text = (undisturbed / "log").read_text()
    for said in ("fine-tuned", "report.html", "summary.json", "models:/", "left"):
        assert said in text
    assert "KFP Executor" not in text


def test_triton_counted_as_many_crystals_as_the_run_scored(undisturbed: Path) -> None:
    counted = json.loads((undisturbed / "runs" / "latest" / "service.json").read_text())
    assert sum(counted["structures"].values()) == 4 * 24 + 2 * 24
    assert counted["failures"] == 0


def test_the_tracking_server_has_the_run_and_the_registry_a_model_that_samples(undisturbed: Path) -> None:
    import mlflow
    import pandas as pd

    from crystalforge.integrations.mlflow import tracking

    uri = f"sqlite:///{undisturbed}/runs/mlflow.db"
    api = tracking.client(uri)
    version = api.get_model_version_by_alias("crystalforge-generator", "candidate")
    assert version.tags["reward_digest"]
    parent = (undisturbed / "runs" / "latest" / "mlflow_run_id").read_text().strip()
    experiment = api.get_run(parent).info.experiment_id
    children = api.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_name for run in children} == {"ingest", "pretrain", "finetune", "evaluate", "register"}
    assert {run.info.status for run in children} == {"FINISHED"}
    (ingested,) = [run for run in children if run.info.run_name == "ingest"]
    assert ingested.inputs.dataset_inputs[0].dataset.digest

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # other tests of this process may have set another
    sampler = mlflow.pyfunc.load_model("models:/crystalforge-generator@candidate")
    written = sampler.predict(pd.DataFrame({"spacegroup": [225], "n": [3], "seed": [7]}))
    assert len(written) == 3
    assert (written["spacegroup"] == 225).all()


def test_killed_in_fine_tuning_it_goes_on_and_ends_with_the_same_figures(undisturbed: Path, small: Small) -> None:
    params = small("killed")
    runs = params.parent / "runs"
    process = start(params)
    deadline = time.monotonic() + 300
    while not any(runs.glob("*/finetune/metrics.jsonl")):
        assert process.poll() is None, (params.parent / "log").read_text()[-4000:]
        assert time.monotonic() < deadline, "fine-tuning never began"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(start(params), params)
    assert judged(summary_of(params.parent)) == judged(summary_of(undisturbed))
    assert len(list(runs.glob("2*"))) == 1, "the killed run went on in its own directory"


def test_dvc_repro_gives_the_same_metrics(undisturbed: Path, small: Small) -> None:
    params = small("dvc")
    place = params.parent
    (place / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PATH": path, "DVC_NO_ANALYTICS": "1"}

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    # dvc reads every section that a stage names: what the small file leaves to its defaults is written out.
    from crystalforge.config import load

    whole = load(params).model_dump(mode="json", by_alias=True)
    params.write_text(yaml.safe_dump(whole))
    call("dvc", "init", "--no-scm", "--quiet")
    call("dvc", "repro")
    shown = json.loads(call("dvc", "metrics", "show", "--json"))
    (found,) = shown[""]["data"].values()
    models = summary_of(undisturbed)["models"]
    for label, model in models.items():  # dvc shows numbers, not lists
        assert found["data"]["models"][label]["metrics"] == model["metrics"]
    call("dvc", "plots", "show")
    assert (place / "dvc_plots" / "index.html").exists()
    assert "didn't change" in call("dvc", "repro"), "nothing is redone when nothing changed"


def test_a_run_from_a_base_model_trains_none_and_samples_as_it_learned(undisturbed: Path, small: Small) -> None:
    params = small("base")
    base = undisturbed / "runs" / "latest" / "pretrain"
    # Other data: the known crystals, not what space groups are drawn from.
    finish(start(params, "--set", f"base={base}", "--set", "data.limit=120"), params)
    summary, before = summary_of(params.parent), summary_of(undisturbed)
    assert list(summary["content"]) == ["ingest", "fetch", "finetune", "evaluate", "register"]
    assert summary["content"]["fetch"] == before["content"]["pretrain"]
    assert summary["content"]["finetune"] == before["content"]["finetune"]
    assert (
        "fetch/model" in (params.parent / "log").read_text() or "finetune/model" in (params.parent / "log").read_text()
    )


def test_a_base_model_that_is_not_there_is_refused_at_once(small: Small) -> None:
    params = small("no-base")
    assert start(params, "--set", "base=no-such-model").wait(timeout=120) == 2
    assert "no model of this name ships" in (params.parent / "log").read_text()
    assert not (params.parent / "runs").exists()


def test_a_reward_server_that_is_away_is_one_message_and_exit_code_2(small: Small) -> None:
    params = small("away")
    arguments = ["--set", "service.url=127.0.0.1:9", "--set", "service.patience_s=1", "--set", "pretrain.epochs=1"]
    assert start(params, *arguments).wait(timeout=300) == 2
    text = (params.parent / "log").read_text()
    assert "127.0.0.1:9" in text
    assert "Traceback" not in text
    assert (params.parent / "runs" / "latest" / "pretrain" / "stage.json").exists(), "what was computed is kept"
