"""Answers in order, and nothing lost when a process dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from crystalforge.data import workers
from crystalforge.data.workers import Pool, available_processes

SOURCE = Path(workers.__file__).parents[2]


def test_order_and_lookahead():
    taken: list[int] = []

    def tasks():
        for number in range(40):
            taken.append(number)
            yield (number,)

    with Pool(2) as pool:
        answers = pool.run(abs, tasks())
        assert next(answers) == 0
        assert len(taken) <= 2 * workers.AHEAD * pool.processes, "the input is not read far ahead"
        assert [0, *answers] == list(range(40))


def test_a_process_that_dies_takes_one_task_with_it():
    """`os._exit` ends the worker as a fault in native code would; the other tasks are done, that one is done here."""
    with Pool(2) as pool:
        tasks = iter([(0,), (3,), (0,)])
        assert list(pool.run(os._exit, tasks, after_crash=lambda code: f"died with {code}")) == [
            "died with 0", "died with 3", "died with 0",
        ]  # fmt: skip
        assert list(pool.run(abs, iter([(-4,), (-5,)]))) == [4, 5], "the pool goes on"


def test_workers_end_with_their_parent():
    script = (
        "import os, time\n"
        "from crystalforge.data.workers import Pool\n"
        "with Pool(1 + 1) as pool:\n"
        "    for pid in pool.run(os.getpid, iter([()])):\n"
        "        print(pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)


def test_at_least_one_process():
    assert 1 <= available_processes() <= (os.cpu_count() or 1)
