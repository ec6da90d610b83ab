"""A server that speaks the Kubernetes API over HTTP and plays the trainer's controller, by a script of states that each
job goes through; what it is sent is checked by the trainer's typed models."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from kubernetes import client

from crystalforge.integrations.trainjob.jobs import TrainJobs
from crystalforge.integrations.trainjob.manifest import TrainJobConfig

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/forge/trainjobs"
PODS = "/api/v1/namespaces/forge/pods"
NOW = "2026-01-01T00:00:00Z"


def condition(kind: str, reason: str, message: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


COMPLETE = condition("Complete", "JobsCompleted", "jobset completed successfully")
FAILED = condition("Failed", "JobsFailed", "jobset failed due to one or more job failures")
SUSPENDED = condition("Suspended", "Suspended", "waiting for quota")
RESUMED = condition("Suspended", "Resumed", "TrainJob is resumed", status="False")


class Answering(BaseHTTPRequestHandler):
    """Speaks JSON, and of nothing to the terminal."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Cluster(ThreadingHTTPServer):
    """One namespace. `script`: the condition lists that a job's watchers are shown in turn; the last one stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.script: list[list[dict[str, Any]]] = [[], [COMPLETE]]
        self.pods: list[dict[str, Any]] = [pod("node-0-0", 0, "Running")]
        self.log = {"node-0-0": ["step 1", "step 2"]}
        self.calls: list[tuple[str, str]] = []
        self.refuse: dict[str, list[int]] = {}  # statuses that the next calls of a method get instead of an answer
        self.silent: dict[str, int] = {}  # how many of a method's next calls, watches not counted, get no answer at all
        self.closed = threading.Event()
        self.step_s = 0.05
        self.drop_watches = 0
        self.vanish = False
        self.on_create: Callable[[list[str]], None] = lambda arguments: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def pod(name: str, index: int, phase: str, exit_code: int | None = None) -> dict[str, Any]:
    state = {"running": {}} if exit_code is None else {"terminated": {"exitCode": exit_code, "reason": "Error"}}
    status = {"name": "node", "ready": True, "restartCount": 0, "image": "i", "imageID": "", "state": state}
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": phase, "containerStatuses": [status]},
    }


class Handler(Answering):
    server: Cluster  # type: ignore[assignment]

    def status(self, code: int, message: str) -> None:
        self.answer(code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code})

    def refused(self) -> bool:
        path = urlparse(self.path).path
        self.server.calls.append((self.command, path))
        if (self.command, path) != ("GET", JOBS) and path.startswith(JOBS) and self.server.silent.get(self.command, 0):
            self.server.silent[self.command] -= 1
            self.server.closed.wait()
        waiting = self.server.refuse.get(self.command, [])
        if waiting and path.startswith(JOBS):
            self.status(waiting.pop(0), "refused by the test")
            return True
        return False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        TrainerV1alpha1TrainJob.from_dict(body)  # raises on what the API does not know
        name = body["metadata"]["name"]
        if name in self.server.jobs:
            self.status(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
            return
        self.server.jobs[name] = body
        self.server.on_create(body["spec"]["trainer"]["args"])
        self.answer(201, body)

    def do_DELETE(self) -> None:
        if self.refused():
            return
        found = self.server.jobs.pop(urlparse(self.path).path.removeprefix(JOBS + "/"), None)
        self.answer(200, {"kind": "Status", "status": "Success"}) if found else self.status(404, "not found")

    def do_GET(self) -> None:
        if self.refused():
            return
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == JOBS:
            assert query["watch"] == "True"
            self.watch(query["fieldSelector"].removeprefix("metadata.name="))
        elif url.path.startswith(JOBS):
            found = self.server.jobs.get(url.path.removeprefix(JOBS + "/"))
            self.answer(200, found) if found else self.status(404, "not found")
        elif url.path == PODS:
            assert query["labelSelector"].startswith("jobset.sigs.k8s.io/jobset-name=")
            self.answer(200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": self.server.pods})
        else:
            lines = self.server.log[url.path.removeprefix(PODS + "/").removesuffix("/log")]
            stamped = query.get("timestamps") == "True"
            text = "".join(
                (f"2026-01-01T00:00:{k:02d}.000000000Z " if stamped else "") + f"{line}\n"
                for k, line in enumerate(lines)
            )
            self.chunks([text.encode()])

    def watch(self, name: str) -> None:
        server = self.server

        def events() -> Iterator[bytes]:
            if server.drop_watches:
                server.drop_watches -= 1
                return
            for number, conditions in enumerate(server.script):
                time.sleep(server.step_s)
                if name not in server.jobs:
                    return
                job = server.jobs[name]
                job["metadata"] |= {"uid": "u", "creationTimestamp": NOW, "resourceVersion": str(number + 1)}
                job["status"] = {"conditions": conditions, "jobsStatus": []}
                kind = "ADDED" if number == 0 else "MODIFIED"
                TrainerV1alpha1TrainJob.from_dict(job)
                yield json.dumps({"type": kind, "object": job}).encode() + b"\n"
            if server.vanish:
                yield json.dumps({"type": "DELETED", "object": server.jobs.pop(name)}).encode() + b"\n"
                return
            while name in server.jobs:  # an open watch: nothing more happens
                time.sleep(0.02)

        self.chunks(events())

    def chunks(self, parts: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for part in parts:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def at_work(server: ThreadingHTTPServer) -> Iterator[None]:
    """A server answers in a thread of its own until it is left."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    server = Cluster()
    with at_work(server):
        yield server
        server.closed.set()


def trainjobs(url: str, **fields: Any) -> TrainJobs:
    """The launcher, with the API server's address."""
    configuration = client.Configuration(host=url)
    configuration.retries = 0  # type: ignore[assignment]
    config = TrainJobConfig(**({"namespace": "forge", "patience_s": 5.0} | fields))
    return TrainJobs(config, api=client.ApiClient(configuration))
