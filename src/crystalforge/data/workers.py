"""Functions in other processes, answers in order, only a few tasks ahead, nobody left behind.

Processes are spawned, not forked: threads of the parent (torch's, gRPC's) cannot deadlock them.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

AHEAD = 2  # tasks per process that are read before their turn: bounds the memory


class Pool:
    """A pool of `processes` worker processes, or this process itself when that is 1.

    >>> with Pool(2) as pool:                                        # doctest: +SKIP
    ...     for answer in pool.run(function, tasks): ...
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterator[tuple[Any, ...]],
        *,
        after_crash: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        """`function(*task)` of each task, in order. A task whose process died is given to `after_crash` here."""
        if self.processes == 1:
            for task in tasks:
                yield function(*task)
            return
        pending: deque[tuple[tuple[Any, ...], Future[Any]]] = deque()
        for task in tasks:
            pending.append((task, self._submit(function, task)))
            if len(pending) >= AHEAD * self.processes:
                yield self._answer(pending, function, after_crash)
        while pending:
            yield self._answer(pending, function, after_crash)

    def _answer(self, pending: deque[Any], function: Callable[..., Any], after_crash: Callable[..., Any] | None) -> Any:
        task, future = pending.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            # All that was pending died with the pool. Each task is a suspect, this one the first.
            self._close()
            waiting = [again for again, _ in pending]
            pending.clear()
            answer = (after_crash or function)(*task)
            pending.extend((again, self._submit(function, again)) for again in waiting)
            return answer

    def _submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Future[Any]:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
            )
        return self._executor.submit(function, *task)

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def available_processes() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: end it when the parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(143)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
