"""Worker processes: the urgent first, a dead one replaced, a directory for one call at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crystalforge.common.errors import InputError
from crystalforge.screening import pool as pools
from crystalforge.screening.pool import Pool, alone
from tests.unit.screening.conftest import config_of

# Speaks as a worker does, and knows three kinds of jobs.
WORKER = """
import os, pickle, sys, time
answers = os.fdopen(os.dup(1), "wb")
model, config, seed, folder = pickle.load(sys.stdin.buffer)
while True:
    try:
        name, kind, payload = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    with open(folder / "asked", "a") as asked:
        asked.write(name + "\\n")
    if kind == "die" and len((folder / "asked").read_text().splitlines()) <= payload["times"]:
        os._exit(1)
    if kind == "slow":
        time.sleep(payload["seconds"])
    answer = ValueError("no such thing") if kind == "fail" else name
    (folder / f"{name}.json").write_text("{}")
    try:
        pickle.dump(answer, answers)
        answers.flush()
    except BrokenPipeError:
        break
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Makes a pool of one worker in tmp_path."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(pools, "COMMAND", [sys.executable, str(script)])
    return lambda lock: Pool(tmp_path, Path("model"), config_of(), 0, 1, lock)


@pytest.fixture
def lock(tmp_path):
    with alone(tmp_path / "lock", print) as descriptor:
        yield descriptor


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_the_most_urgent_job_goes_first(workers, lock, tmp_path):
    pool = workers(lock)
    for urgency in (3, 1, 2):
        pool.ask((urgency,), f"job-{urgency}", "plain", {})
    with pool:
        assert [pool.done.get(timeout=30)[0].name for _ in range(3)] == ["job-1", "job-2", "job-3"]
    assert asked(tmp_path) == ["job-1", "job-2", "job-3"]


def test_a_dead_worker_is_replaced_and_a_deadly_job_told(workers, lock):
    with workers(lock) as pool:
        pool.ask((0,), "once", "die", {"times": 1})
        job, error = pool.done.get(timeout=30)
        assert (job.name, error) == ("once", None)
        pool.ask((0,), "always", "die", {"times": 99})
        _, error = pool.done.get(timeout=30)
        assert "always killed 2 workers" in str(error)
        pool.ask((0,), "later", "plain", {})
        assert pool.done.get(timeout=30)[1] is None


def test_a_worker_s_error_comes_back(workers, lock):
    with workers(lock) as pool:
        pool.ask((0,), "job", "fail", {})
        assert isinstance(pool.done.get(timeout=30)[1], ValueError)


def test_one_call_at_a_time(tmp_path):
    with alone(tmp_path, print), pytest.raises(InputError, match="another call is screening here"):  # noqa: SIM117
        with alone(tmp_path, print):
            raise AssertionError("not reached")
    with alone(tmp_path, print):
        pass


def test_the_next_call_waits_for_the_workers_of_a_killed_one(tmp_path):
    """A process that inherited the lock and outlives whoever held it."""
    said: list[str] = []
    with alone(tmp_path, said.append) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], pass_fds=(descriptor,))
    with alone(tmp_path, said.append):
        child.wait(timeout=5)  # it is ending: the kernel closes its files a moment before it can be seen
    assert said == ["waiting for the workers of an interrupted call to finish what they are at"]
