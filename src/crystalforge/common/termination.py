"""SIGTERM: how a pod, a container or a service is told to end. Within the grace period every verb has ended, with what
was computed on the disk.

`handled` turns the signal into the exception `Terminated`, also in process 1 of a container, where the kernel drops
signals that nobody handles. A loop whose state is whole only between its steps asks for time (`whole_steps`) and looks
at `asked` between them; if no step ends in time, the exception comes anyway, and the last checkpoint counts. Should the
exception itself be held up, in a long call outside Python or by whoever catches everything, a thread ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM
STEP_S = 10.0  # how long a step may go on
LAST_S = 25.0  # after which the process ends in any case; Kubernetes and Docker kill after 30 s and 10 s by default


class Terminated(BaseException):
    """SIGTERM arrived. No Exception: nobody takes it for a failure of what it interrupts."""


class _State:
    def __init__(self) -> None:
        self.asked = self.raised = False
        self.sections: list[float] = []
        self.told: list[Callable[[], None]] = []


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread; entered elsewhere than there, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.asked = _state.raised = False
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGTERM, _on_sigterm)
    signal.signal(signal.SIGALRM, _on_alarm)
    # The interpreter runs handlers between its own instructions; the byte is written at once.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_last, args=(reading,), name="watch-sigterm", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether SIGTERM has arrived."""
    return _state.asked


@contextmanager
def whole_steps(seconds: float = STEP_S) -> Iterator[None]:
    """Inside, SIGTERM raises nothing for so many seconds: the loop looks at `asked` where its state is whole."""
    _state.sections.append(seconds)
    try:
        yield
    finally:
        _state.sections.pop()
        if not _state.sections and _state.asked:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def telling(call: Callable[[], None]) -> Iterator[None]:
    """Inside, `call` is made when SIGTERM arrives: to pass it on to processes that work for this one."""
    _state.told.append(call)
    try:
        yield
    finally:
        _state.told.remove(call)


def _on_sigterm(number: int, frame: object) -> None:
    if _state.asked:
        return  # it is on its way
    _state.asked = True
    for call in _state.told:
        call()
    if _state.sections:
        signal.setitimer(signal.ITIMER_REAL, min(_state.sections))
    else:
        _raise()


def _on_alarm(number: int, frame: object) -> None:
    if _state.asked and not _state.raised:
        _raise()


def _raise() -> None:
    _state.raised = True
    raise Terminated


def _end_at_last(reading: int) -> None:
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while numbers := stream.read(64):
            if signal.SIGTERM in numbers:
                time.sleep(LAST_S)
                os._exit(EXIT_CODE)
