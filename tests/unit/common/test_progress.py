"""Progress lines: what a person reads while waiting."""

from __future__ import annotations

import io

from crystalforge.common.progress import Progress


def lines(total: int | None, *, start: int = 0, quiet: bool = False) -> list[str]:
    stream = io.StringIO()
    with Progress("score", total, unit="crystals", start=start, interval=0.0, stream=stream, quiet=quiet) as progress:
        progress.update(3)
        progress.update(1, note="NLL 12.3")
    return stream.getvalue().splitlines()


def test_line_has_count_total_rate_time_left_and_note() -> None:
    first, last = lines(8)
    assert first.startswith("score         3/8 crystals  ")
    assert first.endswith(" left")
    assert last.startswith("score         4/8 crystals  ")
    assert last.endswith(" left  NLL 12.3")


def test_unknown_total_promises_no_end() -> None:
    _, last = lines(None)
    assert last.startswith("score         4 crystals  ")
    assert "left" not in last
    assert "/0" not in last


def test_resumed_work_counts_from_where_it_stood() -> None:
    assert lines(8, start=4)[-1].startswith("score         8/8 crystals")


def test_the_other_processes_are_silent() -> None:
    assert lines(8, quiet=True) == []
