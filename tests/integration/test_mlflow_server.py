"""The registry as a cluster has it: MLflow's server on a real PostgreSQL, artifacts in an S3-compatible store.

Register, promote and fetch go through HTTP alone: the client has neither the database's nor the store's credentials.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalforge.config import from_sections
from crystalforge.integrations import mlflow as tracking
from crystalforge.stages.promote import PromotionGates, promote

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
FIGURE = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 400}

pytestmark = [
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL's server is not installed (apt-get install postgresql)"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what: str, ready: Any, process: subprocess.Popen[Any], log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert process.poll() is None, f"{what} ended: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"{what} is not ready: {log.read_text()[-3000:]}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.status == 200


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("psycopg", reason="the driver that MLflow's server needs: pip install 'psycopg[binary]'")
    root = tmp_path_factory.mktemp("postgres")
    # PostgreSQL refuses to run as root; its package brings a user of its own.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        for folder in (root, *root.parents):
            if folder.owner() == "root" and folder.name.startswith(("pytest-", "popen-")):
                folder.chmod(0o755)
        shutil.chown(root, user)
    data, port, log = root / "data", free_port(), root / "log"
    arguments: dict[str, Any] = {"user": user, "group": user, "cwd": root} if user else {"cwd": root}
    made = subprocess.run(
        [BINARIES[-1] / "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"],
        capture_output=True, text=True, **arguments,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with log.open("w") as stream:
        server = subprocess.Popen(
            [BINARIES[-1] / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={root}", "-c", "fsync=off"],
            stdout=stream, stderr=stream, **arguments,
        )  # fmt: skip
    ready = [BINARIES[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
    until("PostgreSQL", lambda: subprocess.run(ready, check=False).returncode == 0, server, log)
    yield port
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    pytest.importorskip("moto.server", reason="an S3-compatible server: pip install 'moto[server]'")
    import boto3

    log, port = tmp_path_factory.mktemp("store") / "log", free_port()
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
            stdout=stream, stderr=stream,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    until("the object store", lambda: answers(f"{url}/moto-api/data.json"), server, log)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    ).create_bucket(Bucket="mlflow")
    yield url, keys
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def server(postgres: int, store: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url, keys = store
    root, port = tmp_path_factory.mktemp("mlflow"), free_port()
    # The arguments of manifests/base/mlflow.yaml, with one worker.
    with (root / "log").open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
             f"--backend-store-uri=postgresql://mlflow@127.0.0.1:{postgres}/postgres",
             "--artifacts-destination=s3://mlflow"],
            stdout=stream, stderr=stream, cwd=root, start_new_session=True,
            env=os.environ | keys | {"MLFLOW_S3_ENDPOINT_URL": url, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    until("MLflow", lambda: answers(f"http://127.0.0.1:{port}/health"), process, root / "log")
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_register_promote_and_fetch_over_http(server: str, store: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    config = from_sections(tracking={"uri": server, "directory": str(tmp_path)})
    api = tracking.client(server)
    files = tmp_path / "weights"
    files.mkdir()
    (files / "model.bin").write_bytes(bytes(range(256)) * 4096)
    metrics = {"unique_rate": FIGURE, "sun_rate": {"value": 0.3, "low": 0.28, "high": 0.32, "n": 400}}
    lower = {"unique_rate": FIGURE, "sun_rate": {"value": 0.1, "low": 0.08, "high": 0.12, "n": 400}}
    summary = {
        "protocol": {"name": "p"},
        "baseline": "base",
        "models": {"base": {"metrics": lower}, "tuned": {"metrics": metrics}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with tracking.StageRun(server, "test", tmp_path, "register", tmp_path / "stage") as run:
        run.metrics(1, {"reward": 0.5})
        run.artifact(tmp_path / "summary.json")
        tags = {"model": "tuned", "reward_digest": "ab", "evaluation_run_id": run.run_id}
        version, uri = tracking.register_files(
            run, files, name="crystalforge-generator", alias="candidate", tags=tags, description="card"
        )
    assert promote(config, PromotionGates())["promoted"] is True
    found = tracking.version_of(api, "models:/crystalforge-generator@production")
    assert str(found.version) == version
    fetched = tracking.download(api, f"models:/crystalforge-generator/{version}", tmp_path / "fetched")
    assert (fetched / "model.bin").read_bytes() == (files / "model.bin").read_bytes()
    assert uri == "models:/crystalforge-generator@candidate"

    import boto3

    objects = boto3.client(
        "s3", endpoint_url=store[0], aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    ).list_objects_v2(Bucket="mlflow")
    assert any(item["Key"].endswith("weights/model.bin") for item in objects["Contents"]), "the bytes are in the store"
