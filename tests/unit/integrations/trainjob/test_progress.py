"""A TrainJob's own status, reported to a server that plays Trainer's controller."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJobStatus

from crystalforge.common.progress import LISTENERS, Progress
from crystalforge.integrations.trainjob.progress import ADDRESS_VARIABLE, job_status


class Controller(ThreadingHTTPServer):
    """Takes reports: path, authorisation and what was said."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reports: list[tuple[str, str, dict[str, Any]]] = []
        self.code = 200


class Handler(BaseHTTPRequestHandler):
    server: Controller

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.reports.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    server = Controller()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    (tmp_path / "token").write_text("projected\n")
    monkeypatch.setenv(ADDRESS_VARIABLE, f"http://127.0.0.1:{server.server_address[1]}/status")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_progress_and_metrics_reach_the_jobs_status(controller: Controller) -> None:
    with job_status("pretrain") as status, Progress("pretrain", 4, interval=0.0) as progress:
        assert status is not None
        with Progress("tokenise", 100, interval=0.0) as other:
            other.update(1)  # no measure of how far the job is
        for step in range(4):
            status.metrics({"nll": 10.0 - step})
            progress.update()
        status.metrics({"validation/nll": 7.5})
    path, authorisation, said = controller.reports[-1]
    assert (path, authorisation) == ("/status", "Bearer projected")
    report = said["trainerStatus"]
    assert TrainerV1alpha1TrainJobStatus.from_dict(said) is not None
    assert report["progressPercentage"] == 100
    assert {entry["name"]: entry["value"] for entry in report["metrics"]} == {"nll": "7.0", "validation/nll": "7.5"}
    assert 1 <= len(controller.reports) <= 2, "not more often than the controller wants"
    assert not LISTENERS


def test_a_controller_that_refuses_holds_nothing_up(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    controller.code = 403
    began = time.monotonic()
    with job_status("pretrain") as status:
        assert status is not None
        for step in range(100):
            status.metrics({"nll": float(step)})
        assert time.monotonic() - began < 2
    assert time.monotonic() - began < 30
    assert capsys.readouterr().err.count("took no report of progress; the work goes on") == 1


def test_outside_a_training_job_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    with job_status("pretrain") as status:
        assert status is None
    assert not LISTENERS
