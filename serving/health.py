"""Whether the reward service is well, told over HTTP by the launcher: what a kubelet asks every few seconds must cost
next to nothing.

The launcher has the canary scored anyway and knows its workers (`serving.watch`); this hands on what came of it.

    GET /ready   200 when every worker lives and the golden value is fresh, else 503
    GET /live    503 only when the launcher gave up, or itself does nothing any more: then a restart from outside helps

Both answer with JSON: `healthy`, `golden_age_s` (seconds since the canary crystal last got its golden value) and
`problem`. Standard library only, because `serving.probe` asks here without importing the rest.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

RUN_DIR = Path(tempfile.gettempdir()) / "crystalforge-reward"
ENDPOINT = "endpoint.json"  # in the run directory: what a probe must know
READY, LIVE = "/ready", "/live"
STALE_S = 35.0  # of a golden value: three canaries without an answer (serving.watch.PROBE_S)


@dataclass(frozen=True)
class Report:
    """What is answered: whether all is well, the golden value's age in seconds (none yet: None), what is wrong."""

    healthy: bool
    golden_age_s: float | None
    problem: str | None


class Health:
    """What the launcher knows of its server. Written by the thread that watches, read by those that answer.

    lost: which processes are gone, or None. stale_s: age from which a golden value proves nothing any more. hung_s:
    time without a golden value after which the launcher itself must have failed to mend what is wrong.
    """

    def __init__(self, lost: Callable[[], str | None], *, stale_s: float = STALE_S, hung_s: float = 900.0) -> None:
        self._lost, self._stale_s, self._hung_s = lost, stale_s, hung_s
        self._last = time.monotonic()  # when all was well, or we began
        self._proved: float | None = None
        self._gave_up: str | None = None

    def proved(self) -> None:
        """The canary crystal got its golden value just now."""
        self._last = self._proved = time.monotonic()

    def starts(self) -> None:
        """The server is started (again): what an earlier one proved does not count."""
        self._proved = None

    def gave_up(self, why: str) -> None:
        """The launcher will not start the server again."""
        self._gave_up = why

    def ready(self) -> Report:
        """Whether crystals can be scored now."""
        now, proved = time.monotonic(), self._proved
        age = None if proved is None else round(now - proved, 1)
        problem = self._gave_up
        if problem is None and age is None:
            problem = "starting: the canary crystal has not been scored yet"
        problem = problem or self._lost()
        if problem is None and age is not None and age > self._stale_s:
            problem = f"the canary crystal has not got its golden value for {age:.0f} s"
        return Report(problem is None, age, problem)

    def live(self) -> Report:
        """Whether the launcher can still be trusted to mend what is wrong."""
        now, proved = time.monotonic(), self._proved
        age = None if proved is None else round(now - proved, 1)
        silent = now - self._last
        problem = self._gave_up
        if problem is None and silent > self._hung_s:
            problem = f"no golden value for {silent:.0f} s, and the launcher did not mend it"
        return Report(problem is None, age, problem)


class HealthEndpoint:
    """Answers HTTP on `address`:`port` (0: a free one) inside the `with` block.

    >>> with HealthEndpoint(Health(lambda: "no worker")) as endpoint:
    ...     ask(endpoint.url + READY).problem
    'no worker'
    """

    def __init__(self, health: Health, address: str = "127.0.0.1", port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a caller that sends nothing does not keep a thread

            def do_GET(self) -> None:
                found = {READY: health.ready, LIVE: health.live}.get(self.path)
                report = found() if found is not None else None
                body = json.dumps(report.__dict__ if report else {"problem": f"ask {READY} or {LIVE}"}).encode() + b"\n"
                self.send_response(404 if report is None else 200 if report.healthy else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: two lines a second would hide what matters."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server((address, port), Handler)
        host = "127.0.0.1" if address == "0.0.0.0" else address
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> HealthEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(url: str, *, deadline_s: float = 5.0) -> Report:
    """What the endpoint at `url` answers, OSError when nobody does, ValueError when it is somebody else."""
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(url, timeout=deadline_s) as answer:
            text = answer.read()
    except HTTPError as error:
        if error.code != 503:
            raise
        text = error.read()
    try:
        return Report(**json.loads(text))
    except TypeError as error:
        raise ValueError(f"{url} answers, but not as a reward launcher does") from error
