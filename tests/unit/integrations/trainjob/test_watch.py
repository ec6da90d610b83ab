"""A watch that goes silent or is cut, and logs whose lines share time stamps: against a server that does both."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from crystalforge.integrations.trainjob import jobs, logs
from crystalforge.integrations.trainjob.jobs import TrainJobFailed
from crystalforge.integrations.trainjob.logs import Shown
from crystalforge.integrations.trainjob.manifest import TrainJobConfig
from tests.unit.integrations.trainjob.conftest import Answering, at_work, trainjobs

POD = {"metadata": {"name": "p", "labels": {}}, "status": {"phase": "Running"}}


class Cluster(ThreadingHTTPServer):
    """One job that is complete after `lasts` seconds. How a watch goes: silent (its first event is its last), cut (the
    connection is closed after `cut` seconds), or well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lasts, self.cut, self.how, self.answers = 1.0, 0.3, "well", True
        self.refused: list[int] = []  # statuses that the next watches get
        self.job: dict[str, Any] | None = None
        self.born, self.watches = 0.0, 0
        self.logs: list[list[str]] = [[]]  # what each reading of the log gets; the last one stays

    def now(self) -> dict[str, Any]:
        assert self.job is not None
        done = time.monotonic() - self.born > self.lasts
        return self.job | {"status": {"conditions": [{"type": "Complete", "status": "True"}] if done else []}}


class Handler(Answering):
    server: Cluster  # type: ignore[assignment]

    def do_POST(self) -> None:
        self.server.job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.born = time.monotonic()
        self.answer(201, self.server.job)

    def do_DELETE(self) -> None:
        self.server.job = None
        self.answer(200, {"kind": "Status"})

    def do_GET(self) -> None:
        url, server = urlparse(self.path), self.server
        if url.path.endswith("/log"):
            lines = server.logs.pop(0) if len(server.logs) > 1 else server.logs[0]
            self.send_response(200)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n" for line in lines).encode())
            self.close_connection = True
        elif url.path.endswith("/pods"):
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [POD]})
        elif "watch" in parse_qs(url.query):
            server.watches += 1
            if server.refused:
                self.answer(server.refused.pop(0), {"message": "no"})
            else:
                self.watch()
        elif server.job is None or not server.answers:
            self.answer(404 if server.answers else 401, {"message": "no"})
        else:
            self.answer(200, server.now())

    def watch(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def event(kind: str) -> None:
            data = json.dumps({"type": kind, "object": self.server.now()}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        event("ADDED")
        if self.server.how == "silent":
            time.sleep(60)
        elif self.server.how == "cut":
            time.sleep(self.server.cut)
            self.connection.close()
            self.close_connection = True
        else:
            time.sleep(self.server.lasts + 0.1)
            event("MODIFIED")
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    server = Cluster()
    with at_work(server):
        yield server


def run(cluster: Cluster, patience_s: float) -> dict[str, Any]:
    url = f"http://127.0.0.1:{cluster.server_address[1]}"
    return trainjobs(url, patience_s=patience_s).run("pretrain-1", ["pretrain"])


@pytest.mark.parametrize("how", ["silent", "cut"])
def test_a_watch_that_goes_silent_or_is_cut_is_asked_anew_for_as_long_as_the_job_runs(
    cluster: Cluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 1)
    monkeypatch.setattr(jobs, "SILENCE_S", 0.2)
    cluster.how, cluster.lasts, cluster.cut = how, 5.0, 1.5
    done = run(cluster, patience_s=1.0)  # less than one watch, and much less than the job
    assert done["status"]["conditions"][0]["type"] == "Complete"
    assert cluster.watches >= 3


@pytest.mark.parametrize("status", [401, 403, 410, 429, 500, 503])
def test_a_watch_that_is_refused_for_a_while_fails_no_job(cluster: Cluster, status: int) -> None:
    cluster.refused = [status, status]
    assert run(cluster, patience_s=5.0)["status"]["conditions"]


def test_a_server_that_refuses_everything_is_believed(cluster: Cluster) -> None:
    cluster.refused, cluster.answers = [403] * 100, False
    with pytest.raises(TrainJobFailed, match="watching training job pretrain-1: 403 no"):
        run(cluster, patience_s=60.0)


def test_with_the_defaults_a_silent_watch_is_given_up_long_before_patience_ends() -> None:
    assert TrainJobConfig().patience_s / 2 > jobs.WATCH_SECONDS + jobs.SILENCE_S


def test_an_api_that_answers_nothing_else_is_still_an_absence(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 1)
    monkeypatch.setattr(jobs, "SILENCE_S", 0.2)
    cluster.how, cluster.lasts = "silent", 60.0
    threading.Timer(
        0.5, lambda: (setattr(cluster, "answers", False), cluster.shutdown(), cluster.socket.close())
    ).start()
    with pytest.raises(TrainJobFailed, match=r"did not answer for 2 s"):
        run(cluster, patience_s=2.0)


def at(second: str, *texts: str) -> list[str]:
    return [f"2026-01-01T00:00:{second} {text}" for text in texts]


@pytest.mark.parametrize(
    "lines",
    [
        at("01.000000002Z", "Traceback (most recent call last):", '  File "train.py"', "CUDA error on rank 3"),
        at("01Z", "same", "same", "same"),
        at("01.5Z", "later on stdout") + at("01.25Z", "earlier on stderr") + at("01Z", "first of all"),
        at("01+00:00", "with a zone") + at("01.1+00:00", "and a fraction"),
        at("01Z", "", " indented", "a  b"),
        ["2026-01-01T01:00:00.5+01:00 one hour east", "2026-01-01T00:00:01Z here"],
        ["no stamp at all", "neither here"],
    ],
    ids=["one-write", "equal-lines", "streams-cross", "zones", "spaces", "two-zones", "no-stamps"],
)
def test_every_line_is_shown_once_however_often_the_log_is_read(
    cluster: Cluster, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = at("02.9Z", "the end")
    cluster.logs = [lines[:1], lines[:2], lines, lines, [*lines, *more]]
    cluster.lasts = 3.0
    run(cluster, patience_s=5.0)
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("training job")]
    assert said == [line.partition(" ")[2] for line in [*lines, *more]]


def test_a_restarted_pods_log_is_new_and_a_long_one_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    for pod in ("a", "b"):
        shown.from_the_start(pod)
        assert shown.is_new("2026-01-01T00:00:00Z step 1")
    monkeypatch.setattr(logs, "MOST_KNOWN", 500)
    shown.from_the_start("c")
    lines = [f"2026-01-01T{h:02d}:{m:02d}:{s:02d}Z step" for h in range(2) for m in range(60) for s in range(0, 60, 5)]
    assert all(map(shown.is_new, lines))
    assert len(shown._before) <= 501
    shown.from_the_start("c")
    assert not any(map(shown.is_new, lines))
    assert shown.is_new("2026-01-01T02:00:00Z step")
