"""Progress that a person can read on a terminal and a log collector can keep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

LISTENERS: list[Callable[[str, int, int | None, float | None], None]] = []
"""Called with label, what is done, the total and the seconds left (None: unknown) whenever a line is printed."""


class Progress:
    """Prints `label  done/total  rate unit/s  time left` at most every `interval` seconds.

    total: None where it is not known before the end; the line then has neither total nor time left.

    Plain lines rather than a redrawn bar: the stages run under KFP and in pods, where output is a log. On a
    terminal the line is redrawn in place.

    >>> with Progress("pretrain", total=1000, unit="step") as progress:
    ...     progress.update(1, note="NLL 12.3")   # doctest: +SKIP
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "it",
        start: int = 0,
        interval: float = 2.0,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.done = self._first = start
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet  # of many processes one speaks
        self._redraw = self._stream.isatty()
        self._began = time.monotonic()
        self._printed = 0.0
        self._note = ""
        self._last = -1  # what was done when the last line was printed

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._print(final=True)

    def update(self, amount: int = 1, *, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown at the end of the line."""
        self.done += amount
        self._note = note or self._note
        now = time.monotonic()
        if now - self._printed >= self.interval:
            self._printed = now
            self._print()

    def line(self) -> str:
        """The present state as one line of text."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = (self.done - self._first) / elapsed
        shown_rate = f"{rate:.1f} {self.unit}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{self.unit}"
        parts = [
            f"{self.label:<12}",
            f"{self.done}/{self.total} {self.unit}" if self.total is not None else f"{self.done} {self.unit}",
            shown_rate,
            self._left(rate),
            self._note,
        ]
        return "  ".join(part for part in parts if part)

    def _left(self, rate: float) -> str:
        if self.total is None:
            return ""
        return f"{_clock((self.total - self.done) / rate if rate > 0 else float('inf'))} left"

    def _print(self, final: bool = False) -> None:
        if self._quiet or (final and not self._redraw and self.done == self._last):
            return  # the log has it already
        self._last = self.done
        rate = (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)
        left = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        for listener in LISTENERS:
            listener(self.label, self.done, self.total, left)
        end = "\n" if final or not self._redraw else ""
        start = "\r\x1b[K" if self._redraw else ""
        print(f"{start}{self.line()}", end=end, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
