"""The registry as a cluster has it: MLflow's server with accounts on a real PostgreSQL, artifacts in an S3-compatible
store.

Register, promote, materialise, serve and score go through HTTP alone: the client has neither the database's nor the
store's credentials, and the server has the store at an address that the client cannot reach.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
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
from tests.integration.cluster_services.conftest import ACCOUNT, SECRETS, TrackingServer, free_port

USABLE, REASON = available()
FIGURE = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 400}


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
