"""Where a training loop can be taken up again: a folder of snapshots, each whole or absent, checked when read.

A snapshot is a nested dictionary of tensors and JSON values (`Engine.state_dict()` and a loop's own state), written
as `tensors.safetensors` and `state.json` in a directory of its own, with a hash of both. A snapshot that was damaged
on the disk is passed over for the one before it, with a message.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from crystalforge.common.files import atomic_directory, sha256_file, write_json

PREFIX = "step-"
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "hashes.json"
SEPARATOR = "::"  # between the levels of nested tensor names


def save_snapshot(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `state` as the snapshot of `step` and delete all but the newest `keep`.

    Keys are strings without "::"; leaves are tensors or JSON values.
    """
    path = folder / f"{PREFIX}{step:09d}"
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    with atomic_directory(path) as temporary:
        safetensors.torch.save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps(rest))
        write_json(temporary / HASHES, {name: sha256_file(temporary / name) for name in (TENSORS, STATE)})
    for old in _snapshots(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_snapshot(folder: Path, *, device: str = "cpu") -> tuple[int, dict[str, Any]] | None:
    """The newest undamaged snapshot in `folder`, as (step, state); None when there is none."""
    for leftover in folder.glob(f".{PREFIX}*"):  # of a process killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    for path in reversed(_snapshots(folder)):
        try:
            state = _read(path, device)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            print(f"{path}: damaged ({error}); going back to the snapshot before it", file=sys.stderr)
            continue
        return int(path.name.removeprefix(PREFIX)), state
    return None


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _read(path: Path, device: str) -> dict[str, Any]:
    hashes = json.loads((path / HASHES).read_text())
    for name in (TENSORS, STATE):
        if sha256_file(path / name) != hashes[name]:
            raise ValueError(f"{name} is not what was written")
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    for name, tensor in safetensors.torch.load_file(path / TENSORS, device=device).items():
        *parents, last = name.split(SEPARATOR)
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return state


def _split(value: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move tensors out of nested dictionaries into `tensors`; what is left is JSON."""
    rest: dict[str, Any] = {}
    for key, item in value.items():
        assert SEPARATOR not in key, f"{key!r} cannot name a part of a snapshot"
        if isinstance(item, Tensor):
            # A clone: parameters may share memory, which safetensors refuses.
            tensors[prefix + key] = item.detach().cpu().contiguous().clone()
        elif isinstance(item, Mapping):
            rest[key] = _split(item, f"{prefix}{key}{SEPARATOR}", tensors)
        else:
            rest[key] = item
    return rest
