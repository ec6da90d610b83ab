"""What the system refuses is one message that names the place, and no mistake of ours is hidden behind it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crystalforge.common.system import of_the_system


def caught(call) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda place: (place / "none").read_text(), "none: no such file or directory"),
        (lambda place: place.read_text(), "is a directory.\n  Remedy: give a file"),
        (lambda place: (place / "file" / "below").write_text("x"), "not a directory"),
        (lambda place: (place / "file").mkdir(), "give another path"),
        (lambda place: (place / ("x" * 300)).write_text("x"), "give a shorter name"),
        (lambda place: Path("/dev/full").write_text("x" * 100_000), "make room"),
        (lambda place: safetensors.torch.save_file({"a": torch.zeros(2)}, place / "no" / "x"), "no such file"),
    ],
)
def test_files(call, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert said in (of_the_system(caught(lambda: call(tmp_path))) or "").lower().replace("remedy", "Remedy")


def test_a_full_disk_is_recognised_in_the_words_of_others() -> None:
    for text in ("I/O error: No space left on device (os error 28)", "Write failed: Disk quota exceeded"):
        assert "make room" in (of_the_system(RuntimeError(text)) or "")
    assert "where it was" not in (of_the_system(OSError(errno.EROFS, "Read-only file system", "x")) or "where it was")


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), ValueError("x"), RuntimeError("x"), TypeError("y")])
def test_our_own_mistakes_stay_tracebacks(error: Exception) -> None:
    assert of_the_system(error) is None
