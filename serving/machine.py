"""Ports and processes of this machine (Linux: /proc)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path


def free_port(address: str) -> int:
    """A port that nobody listens on now; somebody may before it is used."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def port_is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: TIME_WAIT does not count
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def listens(address: str, port: int | None) -> bool:
    """Whether somebody answers there."""
    assert port is not None
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


def children(parent: int | None) -> list[int]:
    """Living (not zombie) child processes of `parent`, from /proc."""
    tasks = Path(f"/proc/{parent}/task")
    try:  # by the kernel's own list, which not every kernel keeps: looking at every process takes ten times as long
        found = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    except OSError:
        return [pid for pid, (above, state) in _processes() if above == parent and state not in "ZX"]
    return [pid for pid in found if (_stat(pid) or (0, "X"))[1] not in "ZX"]


def _processes() -> Iterator[tuple[int, tuple[int, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))) is not None:
            yield int(entry.name), found


def _stat(pid: int) -> tuple[int, str] | None:
    """Parent and state of a process; None when it is gone."""
    try:
        # "pid (name) state ppid ...", where the name may hold spaces and brackets
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent), state


def command_of(pid: int) -> str:
    """The command line of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
