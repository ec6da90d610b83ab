"""The launcher of TrainJobs against a real API server; with --kubeflow, the real controllers too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = {"pipelines.kubeflow.org/v2_component": "true", "crystalforge.dev/role": "learner"}
LAUNCH = """
import sys
from crystalforge.integrations.trainjob.jobs import TrainJobs
from crystalforge.integrations.trainjob.manifest import TrainJobConfig
config = TrainJobConfig(gpus_per_node=0, cpu="500m", memory="1Gi", processes_per_node=1, nodes=int(sys.argv[2]))
TrainJobs(config).run(sys.argv[1], sys.argv[3:])
"""


def launch(kube: Any, name: str, job: str, *arguments: str, nodes: int = 1) -> None:
    """Begin a pod, under the account of pipeline steps, that launches a job and waits for it."""
    words = " ".join([job, str(nodes), *arguments])
    script = f"cat >/tmp/launch.py <<'END'\n{LAUNCH}END\nexec python3 /tmp/launch.py {words}\n"
    kube.start(name, script, labels=STEP, account="pipeline-step")


@pytest.fixture
def crds(deployed: Any) -> Any:
    if not deployed.knows("TrainJob"):
        pytest.skip("the cluster does not know TrainJobs: install the CRDs of Kubeflow Trainer")
    return deployed


def exists(kube: Any, job: str) -> bool:
    return bool(kube("get", "trainjob", job, "--ignore-not-found", "-o", "name").strip())


def test_a_job_is_created_watched_to_its_end_and_cleaned_up(crds: Any, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--kubeflow"):
        pytest.skip("the controller is there: it decides how a job ends")
    launch(crds, "launcher", "watched-1", "--help")
    crds.until("the job exists", lambda: exists(crds, "watched-1"), 3)
    assert "admitted" not in crds("logs", "launcher"), "nobody has looked at it"
    ended = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": "by the test"}
    status = {
        "status": {"conditions": [ended | {"lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}]}
    }
    crds("patch", "trainjob", "watched-1", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    assert crds.ended("launcher", minutes=3) == "Succeeded"
    assert not exists(crds, "watched-1")


def test_a_launcher_that_is_told_to_end_takes_its_job_along(crds: Any) -> None:
    launch(crds, "launcher", "cancelled-1", "--help")
    crds.until("the job exists", lambda: exists(crds, "cancelled-1"), 3)
    crds("delete", "pod", "launcher", "--grace-period=30", "--wait=true")
    crds.until("the job is gone", lambda: not exists(crds, "cancelled-1"), 1)


@pytest.mark.kubeflow
def test_the_real_controller_runs_a_job_to_its_end(crds: Any) -> None:
    launch(crds, "launcher", "real-1", "ingest", "--config=/etc/crystalforge/params.yaml", "--out=/workspace/trainjob")
    assert crds.ended("launcher", minutes=15) == "Succeeded", crds("logs", "launcher")
    assert not exists(crds, "real-1")


@pytest.mark.kubeflow
def test_the_engine_runs_discovery_to_success(deployed: Any, tmp_path: Path) -> None:
    endpoint = os.environ.get("CRYSTALFORGE_KFP_ENDPOINT")
    if not endpoint:
        pytest.skip("CRYSTALFORGE_KFP_ENDPOINT is not set")
    from kfp import Client

    space = deployed.namespace
    (tmp_path / "cluster.yaml").write_text(
        (ROOT / "pipelines" / "clusters" / "local.yaml").read_text() + f"namespace: {space}\n"
    )
    small = [
        "data.limit=300", "model.layers=1", "model.heads=2", "model.head_size=16", "model.width=32",
        "model.embedding=16", "pretrain.epochs=4", "pretrain.batch_size=64", "finetune.steps=3",
        "finetune.batch_size=24", "evaluate.samples=24", "evaluate.nearest=false",
        "service.mode=triton", f"service.url=rewards.{space}.svc.cluster.local:8001",
        f"tracking.uri=http://mlflow.{space}.svc.cluster.local:5000",
    ]  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).parent / "crystalforge", "submit", "discovery", "--config", ROOT / "params.yaml",
         "--cluster", tmp_path / "cluster.yaml", "--endpoint", endpoint, *(w for s in small for w in ("--set", s))],
        capture_output=True, text=True,
        env=os.environ | {"CRYSTALFORGE_TRAIN_IMAGE": deployed.images["crystalforge/train"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run_id"]
    finished = Client(host=endpoint, namespace=space).wait_for_run_completion(run, timeout=3600)
    assert finished.state == "SUCCEEDED"
