"""Runs the inference server and makes sure that it never outlives whoever asked for it.

A process of its own, standard library only, because it must do its work when the asking process was killed:
it ends the server's whole process group (Triton and its Python workers), waits for each of them, so that none
stays as a zombie with whoever is process 1, and removes the shared memory that they leave in /dev/shm. Usage:
`python guard.py PARENT_PID COMMAND...`; `@SHM@` in the command becomes the prefix of the regions' names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
GRACE_S = 5.0  # a worker in the middle of a long forward pass is not worth waiting for longer
POLL_S = 0.1
SHM_PREFIX = "crystalforge-"


def main(parent: int, command: list[str]) -> int:
    """Run `command` until it ends, we are told to stop, or `parent` is gone; returns its exit code."""
    stop = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    shm_prefix = f"{SHM_PREFIX}{os.getpid()}-"
    command = [word.replace("@SHM@", shm_prefix) for word in command]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # a dead server's workers become our children, not process 1's
    # A session of its own gives the group to kill; the death signal covers a SIGKILL of this very process.
    server = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)
    while server.poll() is None and not stop and os.getppid() == parent:
        reap(spare=server.pid)
        time.sleep(POLL_S)
    _end(server)
    deadline = time.monotonic() + GRACE_S
    while reap() and time.monotonic() < deadline:
        time.sleep(0.02)
    remove_shared_memory(shm_prefix)
    return server.returncode


def reap(*, spare: int | None = None) -> bool:
    """Wait for the children that have ended, but for `spare`, whose end somebody else waits for; returns whether any
    child is left."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if ended is None or ended.si_pid == spare:
            return True
        os.waitpid(ended.si_pid, 0)


def remove_shared_memory(prefix: str) -> list[str]:
    """Remove the regions in /dev/shm whose name starts with `prefix`; returns their names."""
    removed = []
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()
            removed.append(region.name)
    return removed


def sweep_shared_memory() -> list[str]:
    """Remove regions of guards that are gone (killed with SIGKILL before they could clean up)."""
    removed = []
    for region in Path("/dev/shm").glob(f"{SHM_PREFIX}*"):
        owner = region.name.removeprefix(SHM_PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            removed += remove_shared_memory(region.name)
    return removed


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Also when the server itself is gone: its workers may be left in the group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
    server.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
