"""Whole or absent, and readable by whom the umask means to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crystalforge.common.files import atomic_directory, atomic_file, umask


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_handed_over_has_the_umasks_mode_whoever_wrote_it(mask: int, tmp_path: Path) -> None:
    assert umask() == mask
    with atomic_file(tmp_path / "one") as temporary:
        temporary.write_text("x")
    with atomic_directory(tmp_path / "many") as temporary:
        safetensors.torch.save_file({"a": torch.zeros(2)}, temporary / "weights")
        (temporary / "below").mkdir(mode=0o700)
        (temporary / "below" / "program").write_text("x")
        (temporary / "below" / "program").chmod(0o700)
        (temporary / "link").symlink_to("weights")
    assert mode(tmp_path / "one") == mode(tmp_path / "many" / "weights") == 0o666 & ~mask
    assert mode(tmp_path / "many") == mode(tmp_path / "many" / "below") == 0o777 & ~mask
    assert mode(tmp_path / "many" / "below" / "program") == (0o700 | 0o666) & ~mask


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")

    def fill(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), atomic_file(tmp_path / "file") as temporary:
        fill(temporary)
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("before")
    with pytest.raises(OSError, match="No space"), atomic_directory(tmp_path / "folder") as temporary:
        fill(temporary / "a")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
