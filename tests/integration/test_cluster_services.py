"""Registry and data as a cluster has them: MLflow's server with accounts on a real PostgreSQL, artifacts and data in an
S3-compatible store.

Register, promote, materialise, serve and score go through HTTP alone: the client has neither the database's nor the
store's credentials, and the server has the store at an address that the client cannot reach.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.server import get_app_client

from crystalforge.common.errors import InputError
from crystalforge.config import from_sections
from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import to_crystals
from crystalforge.data.config import DataConfig
from crystalforge.data.ingest import ingest
from crystalforge.data.sources.tables import embedded
from crystalforge.integrations.dvc import data_version
from crystalforge.integrations.mlflow import registry, tracking
from crystalforge.model.checkpoint import load_model, save_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample
from crystalforge.platform.fetch import fetch
from crystalforge.platform.promote import PromotionGates, promote
from crystalforge.rewards import Status, build, parse
from serving.launcher import TritonServer, available
from serving.materialize import materialize, publish
from serving.repository import ModelSettings

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
USABLE, REASON = available()
FIGURE = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 400}

ROOT = Path(__file__).resolve().parents[2]


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


class Told:
    """Whom the registry tells of promotions, and what it was told; what the secret has not signed does not count."""

    def __init__(self) -> None:
        self.secret = "shared-with-the-registry-8d41"
        messages: Queue[dict[str, Any]] = Queue()
        secret = self.secret.encode()

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signed = f"{self.headers['X-MLflow-Delivery-Id']}.{self.headers['X-MLflow-Timestamp']}.".encode() + body
                digest = hmac.new(secret, signed, hashlib.sha256).digest()
                if self.headers["X-MLflow-Signature"] == f"v1,{base64.b64encode(digest).decode()}":
                    messages.put(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.messages = messages
        server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{server.server_port}/promotions"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self.messages.get(timeout=60)["data"]


def evaluated(folder: Path) -> None:
    """A summary as an evaluation leaves it, by which the tuned model is clearly better."""
    metrics = {"unique_rate": FIGURE, "sun_rate": {"value": 0.3, "low": 0.28, "high": 0.32, "n": 400}}
    lower = {"unique_rate": FIGURE, "sun_rate": {"value": 0.1, "low": 0.08, "high": 0.12, "n": 400}}
    summary = {
        "protocol": {"name": "p"},
        "baseline": "base",
        "models": {"base": {"metrics": lower}, "tuned": {"metrics": metrics}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def objects(store: tuple[str, dict[str, str]]) -> list[str]:
    """Names of all that lies in the object store."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=store[0], aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.mark.triton
@pytest.mark.skipif(not USABLE, reason=REASON)
def test_registered_promoted_materialised_served_and_scored(
    server: str,
    tracked: TrackingServer,
    store: tuple[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = from_sections(tracking={"uri": server, "directory": str(tmp_path)})
    api = tracking.client(server)

    # A generator is registered with its evaluation, and promoted by its gates.
    torch.manual_seed(0)
    model = CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8))
    save_model(tmp_path / "model", model, info={})
    evaluated(tmp_path)
    with tracking.StageRun(server, "test", tmp_path, "register", tmp_path / "stage") as run:
        run.artifact(tmp_path / "summary.json")
        tags = {"model": "tuned", "reward_digest": "ab", "evaluation_run_id": run.run_id,
                "model_hash": weights_hash(model)}  # fmt: skip
        version, uri = registry.register_generator(
            run, tmp_path / "model", name="crystalforge-generator", alias="candidate", tags=tags, description="card"
        )
    assert uri == "models:/crystalforge-generator@candidate"
    told = Told()
    # By a person, who has an account of the admin's making.
    person = {"MLFLOW_TRACKING_USERNAME": "mendeleev", "MLFLOW_TRACKING_PASSWORD": "a-persons-own-19b4"}
    with monkeypatch.context() as change:
        change.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        change.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"])
        get_app_client("basic-auth", server).create_user("mendeleev", person["MLFLOW_TRACKING_PASSWORD"])
        api.create_webhook("promotions", told.url, ["model_version_alias.created"], secret=told.secret)
        for name, value in person.items():
            change.setenv(name, value)
        assert promote(config, PromotionGates())["promoted"] is True
    assert str(registry.version_of(api, "models:/crystalforge-generator@production").version) == version
    assert told.next() == {"name": "crystalforge-generator", "alias": "production", "version": version}

    # A reward is registered with the file that it needs; what it was made from goes away.
    hull = tmp_path / "entries.parquet"
    pq.write_table(pa.table({"formula": ["Na", "Cl", "NaCl"], "energy_per_atom": [-1.3, -1.8, -3.5]}), hull)
    reward = parse({"kind": "ehull", "hull": str(hull)})
    crystals = [crystal for crystal in to_crystals(drawn(model)) if crystal is not None][:6]
    known = Crystal.of(2.845 * (np.ones((3, 3)) - np.eye(3)), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    expected = build(reward).score([known, *crystals])
    assert publish(reward, "stability", uri=server, root=tmp_path) == "1"
    hull.unlink()
    assert any(key.endswith("model.safetensors") for key in objects(store)), "the bytes are in the store"
    assert any(key.endswith("-entries.parquet") for key in objects(store))

    # Whoever serves knows the registry's address alone.
    repository = tmp_path / "repository"
    assert materialize(repository, ["stability"], uri=server) == {"stability": "1"}
    settings = json.loads((repository / "stability" / "1" / "settings.json").read_text())
    assert settings["expected_digest"] == api.get_model_version("stability", "1").tags["reward_digest"]

    # And whoever samples: the promoted generator comes back as it was, and its crystals get the reward's values.
    fetched = fetch(config, "models:/crystalforge-generator@production", tmp_path / "fetched")
    assert fetched["content"] == weights_hash(model)
    again = [c for c in to_crystals(drawn(load_model(tmp_path / "fetched" / "model").model)) if c is not None][:6]
    served = ModelSettings(expected_digest=settings["expected_digest"])
    with (
        TritonServer({"stability": parse(settings["reward"])}, settings=served, watched=False) as triton,
        triton.connect() as remote,
    ):
        assert remote.version.digest == settings["expected_digest"]
        scored = remote.score([known, *again])
    np.testing.assert_array_equal(scored.values, expected.values)
    np.testing.assert_array_equal(scored.status, expected.status)
    assert scored.status[0] == Status.OK
    assert scored.values[0] > scored.values[1:].max(), "rock salt against crystals of an untrained model"

    # A command of its own, as a person or a step runs it.
    done = subprocess.run(
        [sys.executable, "-m", "serving.materialize", "build", "--out", tmp_path / "again", "stability",
         "--tracking-uri", server],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = "".join(capfd.readouterr()) + done.stdout + done.stderr + tracked.log.read_text()
    assert "/api/2.0/mlflow/" in said, "the server tells of requests"
    for secret in (*SECRETS.values(), person["MLFLOW_TRACKING_PASSWORD"], told.secret):
        assert secret not in said


@pytest.mark.parametrize(
    "account", [{}, ACCOUNT | {"MLFLOW_TRACKING_PASSWORD": "not-the-password"}], ids=["no account", "wrong password"]
)
def test_without_an_account_nothing_is_read_or_written(
    tracked: TrackingServer, account: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ACCOUNT:
        monkeypatch.delenv(name, raising=False)
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    token = base64.b64encode(":".join(account.values()).encode()).decode()
    headers = {"Authorization": f"Basic {token}"} if account else {}
    for path in ("/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts"):
        request = urllib.request.Request(tracked.url + path, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 401
        refused.value.close()
    config = from_sections(tracking={"uri": tracked.url, "directory": str(tmp_path)})
    attempts = {
        "record": lambda: tracking.StageRun(tracked.url, "test", tmp_path, "register", tmp_path / "stage"),
        "promote": lambda: promote(config, PromotionGates()),
        "fetch": lambda: fetch(config, "models:/crystalforge-generator@production", tmp_path / "fetched"),
        "materialise": lambda: materialize(tmp_path / "repository", ["stability"], uri=tracked.url),
    }
    for what, attempt in attempts.items():
        with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME") as caught:
            attempt()
        assert "not-the-password" not in str(caught.value), what
        assert "401" in str(caught.value), what


@pytest.mark.parametrize("missing", ["MLFLOW_FLASK_SERVER_SECRET_KEY", "CRYSTALFORGE_ACCOUNT_PASSWORD"])
def test_a_server_without_its_secrets_does_not_start(missing: str, tmp_path: Path) -> None:
    given = SECRETS | {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/m.db", "CRYSTALFORGE_ACCOUNT_USERNAME": "l"}
    done = subprocess.run(
        [sys.executable, "-m", "crystalforge.integrations.mlflow.server", f"--port={free_port()}"],
        env=os.environ | given | {missing: ""}, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: environment: {missing} must be set")


def drawn(model: CrystalFormer) -> Tokens:
    """Crystals of an untrained model: no two alike, few of them possible."""
    return sample(model, np.full(12, 225, dtype=np.int64), seed=0).tokens


def test_data_go_to_the_store_by_dvc_and_come_from_it_as_a_source(
    store: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote as it is in git: its address and keys from the environment alone."""
    pytest.importorskip("s3fs", reason="DVC's driver for object stores: pip install 'dvc[s3]'")
    url, keys = store
    for name, value in (keys | {"AWS_ENDPOINT_URL": url, "DVC_NO_ANALYTICS": "1"}).items():
        monkeypatch.setenv(name, value)
    table = pq.read_table(embedded().file).slice(0, 40).drop_columns(["split"])
    pq.write_table(table, tmp_path / "crystals.parquet")

    def dvc(place: Path, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
        dvc(place, "init", "--no-scm", "--quiet")
        with (place / ".dvc" / "config").open("a") as settings:
            settings.write((ROOT / ".dvc" / "config").read_text().replace("[core]", ""))
    shutil.copy(tmp_path / "crystals.parquet", here)
    dvc(here, "add", "--quiet", "crystals.parquet")
    dvc(here, "push", "--quiet")
    shutil.copy(here / "crystals.parquet.dvc", there)
    dvc(there, "pull", "--quiet")
    assert (there / "crystals.parquet").read_bytes() == (tmp_path / "crystals.parquet").read_bytes()

    version = data_version(str(there / "crystals.parquet"))
    address = f"s3://crystalforge/dvc/files/md5/{version[:2]}/{version[2:]}"
    contents = {}
    for name, path in {"file": str(there / "crystals.parquet"), "address": address}.items():
        config = DataConfig.model_validate({"source": {"kind": "parquet", "path": path}})
        contents[name] = ingest(config, tmp_path / name, processes=1, progress=False)["data_hash"]
    assert contents["file"] == contents["address"]
