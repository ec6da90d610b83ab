"""What the pods of a training job say: line by line while it runs, and the end of it when one has failed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

        last = ""  # time stamp of the last line that was shown: after a lost connection no line is shown twice
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
                    for line in _lines(response):
                        stamp, _, text = line.partition(" ")
                        if stamp > last:
                            last = stamp
                            print(text, flush=True)
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


def _lines(response: Any) -> Iterator[str]:
    rest = b""
    for part in response.stream(4096):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")
