"""`crystalforge submit` against an HTTP server that speaks the Kubeflow Pipelines API, and against none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from crystalforge.common.errors import InputError
from crystalforge.config import Config
from crystalforge.platform.submit import submit

API = "/apis/v2beta1"


class Endpoint(ThreadingHTTPServer):
    """Keeps what is posted; `refuse`: the status that a new run gets; `token`: what every request must carry."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: list[dict[str, Any]] = []
        self.refuse: int | None = None
        self.token: str | None = None
        self.stranger = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, code: int, body: dict[str, Any] | str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        wanted = self.server.token
        if wanted is not None and self.headers.get("Authorization") != f"Bearer {wanted}":
            self.answer(401, {"error": "no token", "code": 16})
            return True
        return False

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if self.refused():
            return
        if self.server.stranger:
            self.answer(200, "<html>a wiki</html>")
        elif path == f"{API}/healthz":
            self.answer(200, {"multi_user": False})
        elif path == f"{API}/experiments":
            self.answer(
                200, {"experiments": [{"experiment_id": "e1", "display_name": "crystalforge"}], "total_size": 1}
            )
        elif path == f"{API}/experiments/e1":
            self.answer(200, {"experiment_id": "e1", "display_name": "crystalforge"})
        else:
            self.answer(404, {"error": path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        if self.server.refuse is not None:
            self.answer(self.server.refuse, {"error": "the namespace has no quota left", "code": 3})
        elif urlparse(self.path).path == f"{API}/runs":
            self.server.runs.append(body)
            self.answer(200, body | {"run_id": "r1", "experiment_id": "e1"})
        else:
            self.answer(404, {"error": self.path})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_carries_pipeline_parameters_and_the_steps_account(endpoint: Endpoint) -> None:
    told = submit("sweep", Config(seed=5), endpoint=endpoint.url, taus=[0.1, 0.2])
    assert told["run_id"] == "r1"
    (run,) = endpoint.runs
    assert run["service_account"] == "pipeline-step"
    spec = run["pipeline_spec"]
    assert spec["pipeline_spec"]["pipelineInfo"]["name"] == "sweep"
    assert "kubernetes" in spec["platform_spec"]["platforms"]
    given = run["runtime_config"]["parameters"]
    assert given["seed"] == "5"
    assert given["workspace"] == told["workspace"]
    assert [json.loads(v["finetune_config"])["tau"] for v in given["variants"]] == [0.1, 0.2]
    again = submit("sweep", Config(seed=5), endpoint=endpoint.url, taus=[0.1, 0.2])
    assert again["workspace"] == told["workspace"], "the same request goes on where it was"
    other = submit("sweep", Config(seed=6), endpoint=endpoint.url, taus=[0.1, 0.2])
    assert other["workspace"] != told["workspace"]


def test_a_token_is_sent_from_its_file(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.token = "sesame"
    with pytest.raises(InputError, match=r"answers 401(?s:.*)--token-file"):
        submit("discovery", Config(), endpoint=endpoint.url)
    (tmp_path / "token").write_text("sesame\n")
    assert submit("discovery", Config(), endpoint=endpoint.url, token=tmp_path / "token")["run_id"] == "r1"


def test_an_endpoint_that_is_away_a_stranger_or_refuses_is_one_message(endpoint: Endpoint) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9: cannot be reached(?s:.*)port-forward"):
        submit("discovery", Config(), endpoint="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"is no http\(s\) address"):
        submit("discovery", Config(), endpoint="kfp:8080")
    endpoint.refuse = 400
    with pytest.raises(InputError, match="400 the namespace has no quota left"):
        submit("discovery", Config(), endpoint=endpoint.url)
    endpoint.stranger = True
    with pytest.raises(InputError, match="no Kubeflow Pipelines API"):
        submit("discovery", Config(), endpoint=endpoint.url)


def test_the_compiled_file_carries_its_parameters(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("workspace_path: /volume\nlearner: {gpus: 2}\n")
    told = submit("discovery", Config(seed=3), output=tmp_path / "d.yml", cluster=cluster)
    assert told["workspace"].startswith("/volume/discovery-")
    spec = next(yaml.safe_load_all((tmp_path / "d.yml").read_text()))
    given = spec["root"]["inputDefinitions"]["parameters"]
    assert given["seed"]["defaultValue"] == "3"
    assert json.loads(given["finetune_config"]["defaultValue"]) == Config().model_dump(mode="json")["finetune"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--local, --output FILE, --endpoint"):
        submit("discovery", Config())
    with pytest.raises(InputError, match="choose one of discovery, finetune, sweep, train-predictor"):
        submit("discover", Config(), output=tmp_path / "x.yaml")
    (tmp_path / "cluster.yaml").write_text("learner: {gpu: 2}\n")
    with pytest.raises(InputError, match="did you mean 'gpus'"):
        submit("discovery", Config(), output=tmp_path / "x.yaml", cluster=tmp_path / "cluster.yaml")
