"""Keeps a reward server well: looks at its workers, asks it to work, and starts it again when it does not."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from crystalforge.common.errors import InputError

LOOK_S = 1.0  # between looks at the workers
PROBE_S = 10.0  # between probes
HANG_S = 300.0  # a probe overtakes queued work, so it waits for one execution at most; this is no execution
RESTARTS, RESTART_WINDOW_S = 5, 600.0


class Server(Protocol):
    """What is watched; `TritonServer`."""

    @property
    def log_path(self) -> Path: ...
    @property
    def models(self) -> Collection[str]: ...
    def lost(self) -> str | None: ...
    def problem(self, *, deadline_s: float) -> str | None: ...
    def scored(self, name: str) -> Mapping[str, int]: ...
    def restart(self) -> None: ...


def watch(server: Server, ended: Callable[[], str | None], *, idle_s: float | None = None) -> str:
    """Keep a started server well until `ended` gives a reason to end; returns that reason.

    A restart keeps the address, so that clients which wait find the server again. idle_s: also end after so long
    without a crystal scored. Raises InputError when the server dies again and again.
    """
    starts: deque[float] = deque(maxlen=RESTARTS)
    probed = answered = active = time.monotonic()
    scored = -1
    while True:
        time.sleep(LOOK_S)
        reason = ended()
        if reason is not None:
            return reason
        now = time.monotonic()
        trouble = server.lost()
        if trouble is None and now - probed > PROBE_S:
            probed = now
            trouble = server.problem(deadline_s=PROBE_S)
            if trouble is None:
                answered = now
            elif "deadline" in trouble and now - answered < HANG_S:
                trouble = None  # busy, as far as one can tell
            if trouble is None and idle_s is not None:
                total = sum(sum(server.scored(name).values()) for name in server.models)
                scored, active = (scored, active) if total == scored else (total, now)
                if now - active > idle_s:
                    return f"nobody asked for anything in {idle_s:.0f} s"
        if trouble is not None and ended() is None:
            if len(starts) == RESTARTS and now - starts[0] < RESTART_WINDOW_S:
                raise InputError(
                    f"the reward server died {RESTARTS + 1} times in {now - starts[0]:.0f} s, last: {trouble}",
                    source=server.log_path,
                    remedy="look into its log; too little memory is a common reason",
                )
            starts.append(now)
            print(f"serve         {trouble}: starting again", file=sys.stderr, flush=True)
            server.restart()
            probed = answered = time.monotonic()
