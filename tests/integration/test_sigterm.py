"""How a pod is told to end: the verb ends in time with its checkpoint, and its tracked run is closed as killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

GRACE_S = 120.0  # Kubernetes' own is 30 s; the machine may be full of other tests
CLI = [sys.executable, "-m", "crystalforge.cli"]
MODEL = "{layers: 1, heads: 2, head_size: 8, width: 16, embedding: 8, dropout: 0.0}"
ENDLESS = ("pretrain.epochs=100000", "pretrain.checkpoint_every=1000000", "pretrain.batch_size=32", f"model={MODEL}")
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sigterm")
    settings = ("--set", "data.limit=60", "--set", "tracking.enabled=false")
    subprocess.run([*CLI, "ingest", *settings, "-o", "data"], cwd=place, check=True, capture_output=True)
    return place / "data"


def training(place: Path, data: Path, *settings: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A pre-training without end that has begun."""
    words = [word for assignment in (*ENDLESS, *settings) for word in ("--set", assignment)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, *CLI, "pretrain", *words, "--data", str(data), "-o", "base"], cwd=place, stdout=log, stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        )  # fmt: skip
    deadline = time.monotonic() + 300
    while "step/s" not in (place / "log").read_text() and "s/step" not in (place / "log").read_text():
        assert process.poll() is None, (place / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def ends_in_time(process: subprocess.Popen[bytes], pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    process.wait(timeout=GRACE_S)


def test_a_training_ends_with_its_checkpoint_and_its_run_is_closed_as_killed(data: Path, tmp_path: Path) -> None:
    process = training(tmp_path, data)
    ends_in_time(process, process.pid)
    said = (tmp_path / "log").read_text()
    assert process.returncode == 143, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert len(list((tmp_path / "base" / "snapshots").glob("step-*/tensors.safetensors"))) == 1
    from crystalforge.integrations.mlflow import tracking

    run = tracking.client(f"sqlite:///{tmp_path}/runs/mlflow.db").get_run(
        (tmp_path / "base/mlflow_run_id").read_text().strip()
    )
    assert run.info.status == "KILLED"


def test_as_process_1_of_a_container_it_ends_too(data: Path, tmp_path: Path) -> None:
    """The kernel drops signals to process 1 that it has no handler for."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("not permitted here: a process namespace (unshare --pid)")
    process = training(tmp_path, data, "tracking.enabled=false", prefix=tuple(NAMESPACE))
    (inside,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    ends_in_time(process, inside)
    assert "the same command goes on" in (tmp_path / "log").read_text()
    assert list((tmp_path / "base" / "snapshots").glob("step-*"))


def test_a_verb_without_steps_ends_at_once(tmp_path: Path) -> None:
    words = ["sample", "-m", "mp20", "-n", "1000000", "--spacegroup", "225", "-o", "drawn"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*CLI, *words], cwd=tmp_path, stdout=log, stderr=log)
    time.sleep(3)  # wherever it is: importing, loading, drawing
    ends_in_time(process, process.pid)
    assert process.returncode in (143, -signal.SIGTERM), "the latter before Python has begun"
