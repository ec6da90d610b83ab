"""PostgreSQL, an S3-compatible store, and MLflow's server with accounts between them, as on a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []


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
    if not BINARIES:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
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
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    for bucket in ("mlflow", "crystalforge"):
        client.create_bucket(Bucket=bucket)
    yield url, keys
    server.terminate()
    server.wait(30)


SECRETS = {
    "POSTGRES_PASSWORD": "database-3f1c9a",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "administrator-77ab20",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "signing-key-5d2e61",
    "CRYSTALFORGE_ACCOUNT_PASSWORD": "of-the-account-c04b",
}
ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "learner", "MLFLOW_TRACKING_PASSWORD": SECRETS["CRYSTALFORGE_ACCOUNT_PASSWORD"]}


@dataclass(frozen=True)
class TrackingServer:
    """The tracking server's address and its log."""

    url: str
    log: Path


@pytest.fixture(scope="module")
def tracked(
    postgres: int, store: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    pytest.importorskip("flask_wtf", reason="MLflow's accounts: pip install 'mlflow[auth]'")
    url, keys = store
    root, port = tmp_path_factory.mktemp("mlflow"), free_port()
    database = f"postgresql://mlflow:{SECRETS['POSTGRES_PASSWORD']}@127.0.0.1:{postgres}/postgres"
    # An address that nobody has (RFC 5737) and that only the server can use, by a proxy: as behind a network policy.
    where = {"MLFLOW_S3_ENDPOINT_URL": "http://192.0.2.1:9000", "http_proxy": url, "NO_PROXY": "127.0.0.1"}
    # The arguments and the environment of manifests/base/mlflow.yaml, with one worker; what it says about the store
    # is left out, because clients must know by themselves.
    with (root / "log").open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "crystalforge.integrations.mlflow.server", "--host=127.0.0.1", f"--port={port}",
             "--workers=1"],
            stdout=stream, stderr=stream, cwd=root, start_new_session=True,
            env=os.environ | keys | where | SECRETS | {
                "MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
                "CRYSTALFORGE_ACCOUNT_USERNAME": "learner", "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                # Messages go to https and to addresses of the world alone, but for tests.
                "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
                "MLFLOW_WEBHOOK_CACHE_TTL": "0",
            },
        )  # fmt: skip
    until("MLflow", lambda: answers(f"http://127.0.0.1:{port}/health"), process, root / "log")
    yield TrackingServer(f"http://127.0.0.1:{port}", root / "log")
    process.terminate()
    process.wait(30)


@pytest.fixture
def server(tracked: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The registry's address; the environment has the account that the manifests give to learners and steps."""
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a machine that does other things too
    return tracked.url
