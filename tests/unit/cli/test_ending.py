"""How every verb ends, by what was raised in it."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from crystalforge.cli.ending import TRACEBACK, ending
from crystalforge.common.errors import InputError
from crystalforge.rewards import RewardUnavailable

ADDRESS = "http://svc:" + "hunter2@host/x"


def left(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, ending():
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("is wrong", source="x"), 2, "error: x: is wrong"),
        (RewardUnavailable("away"), 2, "error: away"),
        (OSError(errno.ENOSPC, "No space left on device", "out/model"), 2, "out/model: no space left on device"),
        (PermissionError(errno.EROFS, "Read-only file system", "/mnt/x"), 2, "/mnt/x: read-only file system"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), 2, "Remedy: give a file, this is a folder"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 2, "Remedy: give another port"),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), 2, "make room"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (KeyError("ours"), 1, "Traceback"),
        (AssertionError(f"at {ADDRESS}"), 1, "AssertionError: at http://***@host/x"),
    ],
)
def test_one_message_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert left(error) == code
    found = capsys.readouterr().err
    assert said in found
    assert "hunter2" not in found
    assert ("Traceback" in found) == (code == 1)


def test_the_systems_errors_with_their_traceback_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    assert left(OSError(errno.EIO, "Input/output error", "x")) == 2
    assert "Traceback" in capsys.readouterr().err


TERMINATED = """
import os, signal
from crystalforge.cli.ending import ending
with ending():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_sigterm_ends_with_143() -> None:
    # In a process of its own: whoever has been terminated is ended by a thread if by nothing else.
    ended = subprocess.run([sys.executable, "-c", TERMINATED], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 143
    assert "terminated; what was computed is kept" in ended.stderr
