"""How far a TrainJob is, in its own status: `kubectl get trainjob NAME -o jsonpath={.status.trainerStatus}`.

Kubeflow Trainer (2.2 and later, where its feature gate TrainJobStatus is on) gives the job's processes an address for
that, by the environment. Nothing here may hold up or end a training: a thread of its own sends, at most every five
seconds, and a controller that does not answer is told of once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from crystalforge.common import progress

ADDRESS_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"
EVERY_S = 5.0  # the vendor's client sends nothing sooner
PATIENCE_S = 15.0  # for the last report: the job's result is worth more


class JobStatus:
    """What is known of the job, sent when it changes. label: of the progress lines that are the job's."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._state: dict[str, object] = {}
        self._changed, self._ended = threading.Event(), threading.Event()
        self._sent = float("-inf")
        self._told = False
        self._thread = threading.Thread(target=self._run, name="trainjob-status", daemon=True)

    def progress(self, label: str, done: int, total: int | None, left_s: float | None) -> None:
        """A listener of `crystalforge.common.progress`."""
        if label == self._label and total:
            known = {"progress_percent": 100 * done // total}
            self._set(known if left_s is None else known | {"estimated_remaining_seconds": round(left_s)})

    def metrics(self, values: Mapping[str, float]) -> None:
        """The newest metrics; those before stay where they are not among them."""
        before = self._state.get("metrics", {})
        assert isinstance(before, dict)
        self._set({"metrics": before | {name: float(value) for name, value in values.items()}})

    def _set(self, values: Mapping[str, object]) -> None:
        self._state = {**self._state, **values}  # a new one: the thread may be reading the old
        self._changed.set()

    def _run(self) -> None:
        try:
            from kubeflow.trainer import update_trainjob_status
        except ImportError:
            self._tell("the package kubeflow is not installed: pip install 'crystalforge[training]'")
            return
        logging.getLogger("kubeflow").setLevel(logging.CRITICAL)  # said once, below
        while True:
            ended = self._ended.wait(max(0.0, self._sent + EVERY_S + 0.1 - time.monotonic()))
            if ended:  # the last report is not too early for the vendor's client either
                time.sleep(max(0.0, self._sent + EVERY_S + 0.1 - time.monotonic()))
            if self._changed.is_set():
                self._changed.clear()
                self._sent = time.monotonic()
                if not update_trainjob_status(**self._state):  # type: ignore[arg-type]
                    self._tell("Trainer's controller took no report of progress; the work goes on")
            if ended:
                return
            self._changed.wait(1.0)

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            print(f"warning: {what}", file=sys.stderr, flush=True)

    def __enter__(self) -> JobStatus:
        progress.LISTENERS.append(self.progress)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        progress.LISTENERS.remove(self.progress)
        self._ended.set()
        self._thread.join(PATIENCE_S)


@contextmanager
def job_status(label: str) -> Iterator[JobStatus | None]:
    """Reports to Trainer inside the block, where this process is one of a TrainJob that wants it; else None."""
    if not os.environ.get(ADDRESS_VARIABLE):
        yield None
        return
    with JobStatus(label) as status:
        yield status
