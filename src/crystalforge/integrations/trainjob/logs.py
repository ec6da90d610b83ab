"""What the pods of a training job say: line by line while it runs, and the end of it when one has failed."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crystalforge.integrations.trainjob.errors import network_errors

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"  # Trainer makes a JobSet of the TrainJob's name; pods carry it
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
CONTAINER = "node"
TAIL_LINES = 20  # of a failed pod's log in the error


class JobLogs:
    """Logs of the jobs in one namespace."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        from kubernetes.client import CoreV1Api

        self._core, self._namespace = CoreV1Api(api), namespace

    @contextmanager
    def repeated(self, name: str) -> Iterator[None]:
        """Repeat the first node's log on stdout until the block ends, then what is left of it."""
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(name, done), name=f"log-{name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10.0)

    def _follow(self, name: str, done: threading.Event) -> None:
        from kubernetes.client import ApiException

        shown = Shown()  # after a lost connection the log is read from its start, and no line is shown twice
        ended = False
        while not ended:
            ended = done.is_set()  # one more round after the end: the last lines
            try:
                pod = next((p for p in self._pods(name) if p.metadata.labels.get(INDEX_LABEL, "0") == "0"), None)
                if pod is not None and pod.status.phase != "Pending":
                    response = self._core.read_namespaced_pod_log(
                        pod.metadata.name,
                        self._namespace,
                        container=CONTAINER,
                        follow=not ended,
                        timestamps=True,
                        _preload_content=False,
                        _request_timeout=(10, 60),
                    )
                    shown.from_the_start(pod.metadata.name)
                    for line in _lines(response):
                        if shown.is_new(line):
                            print(line.partition(" ")[2], flush=True)
            except (ApiException, *network_errors()):
                pass  # the log is a courtesy; the watch decides
            if not ended:
                done.wait(0.5)

    def _pods(self, name: str) -> list[Any]:
        return self._core.list_namespaced_pod(self._namespace, label_selector=f"{JOBSET_LABEL}={name}").items

    def last_words(self, name: str) -> str:
        """The end of every failed pod's log, with its exit code."""
        from kubernetes.client import ApiException

        parts = []
        try:
            for pod in self._pods(name):
                if pod.status.phase != "Failed":
                    continue
                states = [status.state.terminated for status in pod.status.container_statuses or []]
                codes = ", ".join(
                    f"exit code {state.exit_code} {state.reason or ''}".strip() for state in states if state
                )
                text = self._core.read_namespaced_pod_log(
                    pod.metadata.name, self._namespace, container=CONTAINER, tail_lines=TAIL_LINES
                )
                parts.append(f"\n--- {pod.metadata.name} ({codes})\n{text.rstrip()}")
        except (ApiException, *network_errors()) as error:
            parts.append(f"\n(the pods' logs could not be read: {type(error).__name__})")
        return "".join(parts)


class Shown:
    """Which lines of a log were shown, of a log that is read from its start again and again.

    Lines of one write share a time stamp, and those of two streams (stdout, stderr) come in another order than they
    were written: a line is known by its stamp and its text, and is new as often as it occurs more often than before.
    Lines that are older than the newest by `SETTLED_NS` are known by that alone, so that a long log costs no memory.

    >>> shown = Shown()
    >>> shown.from_the_start("pod")
    >>> [shown.is_new(f"2026-01-01T00:00:00.1Z {text}") for text in ("a", "b", "b")]
    [True, True, True]
    >>> shown.from_the_start("pod")
    >>> [shown.is_new(f"2026-01-01T00:00:00.1Z {text}") for text in ("a", "b", "b", "b")]
    [False, False, False, True]
    """

    def __init__(self) -> None:
        self._pod = ""
        self._before: Counter[tuple[int, int]] = Counter()
        self._now: Counter[tuple[int, int]] = Counter()
        self._settled = self._newest = -1

    def from_the_start(self, pod: str) -> None:
        """The log of `pod` is read from its first line; that of another pod, as after a restart, is all new."""
        if pod != self._pod:
            self._pod, self._before, self._settled, self._newest = pod, Counter(), -1, -1
        self._settled = self._newest - SETTLED_NS
        self._before = Counter({line: n for line, n in self._before.items() if line[0] >= self._settled})
        self._now = Counter()

    def is_new(self, line: str) -> bool:
        """Whether the line, its time stamp in front, was not shown yet; from now on it was."""
        stamp, _, text = line.partition(" ")
        at = _nanoseconds(stamp)
        if at < self._settled:
            return False
        self._newest = max(self._newest, at)
        known = (at, hash(text))
        self._now[known] += 1
        if self._now[known] <= self._before[known]:
            return False
        self._before[known] += 1
        if len(self._before) > MOST_KNOWN:
            self._settled = max(self._settled, self._newest - SETTLED_NS)
            for counted in (self._before, self._now):
                for old in [line for line in counted if line[0] < self._settled]:
                    del counted[old]
        return True


SETTLED_NS = 300 * 10**9  # streams do not cross by more
MOST_KNOWN = 200_000  # lines, before the old ones are forgotten


def _nanoseconds(stamp: str) -> int:
    """A time stamp (RFC 3339, as many digits as the runtime writes) as a number; what is none stands before all."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", stamp)
    if found is None:
        return 0
    second, fraction, zone = found.groups()
    at = datetime.fromisoformat(second + ("+00:00" if zone == "Z" else zone))
    return int(at.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0"))


def _lines(response: Any) -> Iterator[str]:
    rest = b""
    for part in response.stream(4096):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")
