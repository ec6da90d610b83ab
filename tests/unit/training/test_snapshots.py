"""Snapshots are whole or passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crystalforge.training.snapshots import HASHES, STATE, TENSORS, load_snapshot, save_snapshot


def state(number: int) -> dict[str, object]:
    return {"number": number, "nested": {"a": torch.full((3,), float(number)), "b": [1, "x", None]}}


def test_nested_state_comes_back(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 7, state(7))
    found = load_snapshot(tmp_path)
    assert found is not None
    step, back = found
    assert step == back["number"] == 7
    assert torch.equal(back["nested"]["a"], torch.full((3,), 7.0))
    assert back["nested"]["b"] == [1, "x", None]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 30):
        save_snapshot(tmp_path, number, state(number), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000030"]


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path) is None
    assert load_snapshot(tmp_path / "absent") is None


@pytest.mark.parametrize("file", [TENSORS, STATE, HASHES])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_snapshot_is_passed_over(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_snapshot(tmp_path, 1, state(1))
    broken = save_snapshot(tmp_path, 2, state(2)) / file
    content = broken.read_bytes()
    if damage == "remove":
        broken.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        broken.write_bytes(flipped if damage == "flip" else content[:middle])
    found = load_snapshot(tmp_path)
    assert found is not None
    assert found[0] == 1
    assert "going back" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 1, state(1))
    (tmp_path / ".step-000000002.abc.tmp").mkdir()
    assert load_snapshot(tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
