"""SIGTERM ends a process in time: at once, after the step that is under way, or in any case."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# What is tried says itself when it has begun: a signal before that meets the plain handler.
PROGRAM = """
import sys, time
from functools import partial
from crystalforge.common import termination
from crystalforge.common.environment import environment

termination.STEP_S, termination.LAST_S = {step}, {last}
ready = partial(print, "ready", flush=True)
def work():
{work}
try:
    with termination.handled():
        work()
except termination.Terminated:
    print("terminated", flush=True)
    sys.exit(termination.EXIT_CODE)
"""
WAITS = """
    try:
        ready()
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
"""
STEPS = """
    with termination.whole_steps(5.0):
        ready()
        for step in range(600):
            time.sleep(0.1)
            if termination.asked():
                print("saved", flush=True)
                raise termination.Terminated
"""
LONG_STEP = """
    with termination.whole_steps(0.5):
        ready()
        time.sleep(60)
"""
DEAF = """
    ready()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""
TELLS = """
    with termination.telling(lambda: print("told", flush=True)):
        ready()
        time.sleep(60)
"""
FAILS_TO_FAIL = """
    try:
        ready()
        time.sleep(60)
    except Exception:
        print("taken for a failure", flush=True)
"""


@pytest.mark.parametrize(
    ("work", "said", "seconds"),
    [(WAITS, "cleaned\nterminated\n", 3), (STEPS, "saved\nterminated\n", 3), (LONG_STEP, "terminated\n", 4),
     (DEAF, "", 6), (TELLS, "told\nterminated\n", 3), (FAILS_TO_FAIL, "terminated\n", 3)],
    ids=["waits", "steps", "a-long-step", "deaf", "tells", "an-exception-handler"],
)  # fmt: skip
def test_the_process_ends_with_143_in_time(work: str, said: str, seconds: float) -> None:
    program = PROGRAM.format(work=work, step=10.0, last=2.0)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    # What hears nothing may still be told to say so, when the machine is slow enough.
    assert rest == said or (work == DEAF and rest == "terminated\n")
    assert time.monotonic() - began < 5 * seconds, "on a machine full of other work"


def test_afterwards_the_process_is_as_it_was() -> None:
    from crystalforge.common import termination

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with termination.handled():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert not termination.asked()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
