"""Tokenising in worker processes.

Workers are plain `python -m crystalforge.crystal.workers` children that speak pickles over their pipes. Nothing is
forked, so threads of the parent (torch's, a Jupyter kernel's) cannot deadlock them, and the parent's main module is
not imported again, so scripts need no guard. A worker that dies (memory, a fault in native code) is replaced and its
crystals are tried one by one: the one that kills its worker becomes a reject.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from crystalforge.crystal.crystal import Crystal
from crystalforge.crystal.symmetry import Reason, TokenizeError, tokenize
from crystalforge.crystal.tokens import Tokens

Chunk = Sequence[Crystal | None]

COMMAND = [sys.executable, "-m", "crystalforge.crystal.workers"]


@dataclass(frozen=True)
class Settings:
    """What a worker must know besides the crystals."""

    symprec: float
    max_sites: int


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """Tokens of a chunk; `kept` [B] are their positions in it, the others are in `failed` (position, code, message)."""

    size: int
    tokens: Tokens
    kept: Int64[np.ndarray, " B"]
    failed: list[tuple[int, Reason, str]]


def tokenize_chunk(chunk: Chunk, settings: Settings) -> ChunkResult:
    """Tokenise crystals one after the other in this process."""
    rows: list[Tokens] = []
    kept: list[int] = []
    failed: list[tuple[int, Reason, str]] = []
    for position, crystal in enumerate(chunk):
        try:
            if crystal is None:
                raise TokenizeError("missing", "there is no crystal: it could not be read or built")
            rows.append(tokenize(crystal, symprec=settings.symprec, max_sites=settings.max_sites))
            kept.append(position)
        except TokenizeError as error:
            failed.append((position, error.reason, str(error)))
    tokens = Tokens.concatenate([Tokens.empty(settings.max_sites + 1), *rows])
    return ChunkResult(len(chunk), tokens, np.array(kept, dtype=np.int64), failed)


def tokenize_in_processes(chunks: Iterator[Chunk], processes: int, settings: Settings) -> Iterator[ChunkResult]:
    """Results in the order of `chunks`, which is read only two chunks per process ahead."""
    workers = [_Worker() for _ in range(processes)]
    idle: deque[_Worker] = deque(workers)

    def run(chunk: Chunk) -> ChunkResult:
        worker = idle.popleft()  # as many threads as workers, so one is always there
        try:
            return worker.tokenize(chunk, settings)
        finally:
            idle.append(worker)

    with ThreadPoolExecutor(processes) as pool:
        try:
            pending: deque[Future[ChunkResult]] = deque()
            for chunk in chunks:
                pending.append(pool.submit(run, chunk))
                if len(pending) >= 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()


class _Worker:
    """One child process, started at its first chunk and again after a death."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def tokenize(self, chunk: Chunk, settings: Settings) -> ChunkResult:
        result = self._ask(chunk, settings)
        if result is not None:
            return result
        if len(chunk) == 1:
            message = "the symmetry search killed its process (out of memory, or a fault in native code)"
            return ChunkResult(
                1, Tokens.empty(settings.max_sites + 1), np.zeros(0, dtype=np.int64), [(0, "crash", message)]
            )
        return _join([self.tokenize([crystal], settings) for crystal in chunk])

    def _ask(self, chunk: Chunk, settings: Settings) -> ChunkResult | None:
        """The child's answer, or None when it died."""
        if self._child is None:
            self._child = _start()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump((list(chunk), settings), self._child.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._child.stdin.flush()
            answer = pickle.load(self._child.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            self._end()
            if self._stopped:
                raise
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        self._stopped = True
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # it holds nothing that is worth an orderly end
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def _start() -> subprocess.Popen[bytes]:
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _join(parts: list[ChunkResult]) -> ChunkResult:
    starts = np.cumsum([0, *(part.size for part in parts)])
    return ChunkResult(
        int(starts[-1]),
        Tokens.concatenate([part.tokens for part in parts]),
        np.concatenate([part.kept + start for part, start in zip(parts, starts[:-1], strict=True)]),
        [
            (position + int(start), reason, message)
            for part, start in zip(parts, starts[:-1], strict=True)
            for position, reason, message in part.failed
        ],
    )


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            chunk, settings = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: ChunkResult | Exception = tokenize_chunk(chunk, settings)
        except Exception as error:  # a defect of ours: the parent raises it
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the pickles
    # This module under its importable name, so that the classes pickled here are the ones that the parent knows.
    from crystalforge.crystal import workers

    workers._serve(sys.stdin.buffer, channel)
