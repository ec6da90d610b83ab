"""Worker processes with a queue of jobs in which the most urgent one goes first.

A worker is a plain child that speaks pickles over its pipes, as the tokeniser's are. It inherits a lock on the
screening's directory and keeps it until it has finished its last job, so that a screening that was killed cannot be
taken up by a second call while results are still being written.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import fsync
from crystalforge.screening.config import ScreenConfig

COMMAND = [sys.executable, "-m", "crystalforge.screening.worker"]
TRIES = 2  # a job that kills its worker (memory, a fault in native code) is tried once more, then told


@dataclass(order=True)
class Job:
    """urgency: the smallest goes first; name: of the file with its result, which also says what it is."""

    urgency: tuple[int, ...]
    number: int
    name: str = field(compare=False)
    kind: str = field(compare=False)
    payload: dict[str, Any] = field(compare=False)
    tries: int = field(default=0, compare=False)


class Pool:
    """Context manager around the workers; `ask` queues a job, `done` is the queue of what has finished."""

    def __init__(self, folder: Path, model: Path, config: ScreenConfig, seed: int, processes: int, lock: int) -> None:
        self.done: queue.Queue[tuple[Job, Exception | None]] = queue.Queue()
        self._settings = (model, config, seed, folder)
        self._lock_descriptor = lock
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._ended = False
        self._numbers = itertools.count()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(processes)]

    def ask(self, urgency: tuple[int, ...], name: str, kind: str, payload: dict[str, Any]) -> None:
        """Queue a job."""
        with self._changed:
            heapq.heappush(self._waiting, Job(urgency, next(self._numbers), name, kind, payload))
            self._changed.notify()

    def forget(self) -> None:
        """Drop what no worker has begun."""
        with self._changed:
            self._waiting.clear()

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._waiting.clear()
            children = list(self._children)
            self._changed.notify_all()
        if kind is KeyboardInterrupt:  # they finish what they are at, and end when they find their pipes closed
            return
        for child in children:  # each has its results on the disk; what it is at now is not wanted any more
            child.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """One thread: takes jobs to one worker, starts another one when it dies."""
        child: subprocess.Popen[bytes] | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    break
                job = heapq.heappop(self._waiting)
            try:
                if child is None:
                    child = self._start()
                answer = self._tell(child, job)
            except (BrokenPipeError, EOFError, pickle.UnpicklingError):
                if child is not None:
                    self._bury(child)
                child = None
                if self._ended:
                    break
                job.tries += 1
                if job.tries < TRIES:
                    with self._changed:
                        heapq.heappush(self._waiting, job)
                    continue
                answer = RuntimeError(f"the job {job.name} killed {TRIES} workers (out of memory, or a native fault)")
            self.done.put((job, answer if isinstance(answer, Exception) else None))
        if child is not None:
            self._bury(child)

    @staticmethod
    def _tell(child: subprocess.Popen[bytes], job: Job) -> Any:
        assert child.stdin is not None
        assert child.stdout is not None
        pickle.dump((job.name, job.kind, job.payload), child.stdin)
        child.stdin.flush()
        return pickle.load(child.stdout)

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._lock_descriptor,), start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )  # fmt: skip
        with self._changed:
            self._children.add(child)
        assert child.stdin is not None
        pickle.dump(self._settings, child.stdin)
        child.stdin.flush()
        return child

    def _bury(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        with self._changed:
            self._children.discard(child)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Any:
    """Hold the directory for one screening; gives the descriptor that workers inherit.

    Raises InputError when another call works here. Waits for the workers of a killed one to finish what they are at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".one-call").open("w") as call, (folder / ".workers").open("w") as workers:
        os.set_inheritable(call.fileno(), False)
        try:
            fcntl.flock(call, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "another call is screening here", source=folder.parent, remedy="wait for it, or give another directory"
            ) from None
        try:
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for the workers of an interrupted call to finish what they are at")
            fcntl.flock(workers, fcntl.LOCK_EX)
        fsync(folder)
        yield workers.fileno()
