"""The state of a run on disk: whole or absent, checked before use, never a pickle.

A checkpoint directory holds `policy.safetensors`, `optimizer.safetensors` (Adam's moments), `average.safetensors` (the
weights' moving average, where one is kept), `state.json` (counters, baseline, monitor) and `manifest.json` with the
SHA-256 of the others. The frozen base is not stored: the run's
identity names its hash. Random generators are not stored: all randomness follows from (seed, number of the crystal
or step), on however many ranks. The state is whole: another number of ranks, or another engine, can take it up.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, recover_directory, sha256_file, write_json
from crystalforge.model.network import CrystalFormer
from crystalforge.training.engine import Engine, optimizer_order

log = logging.getLogger(__name__)

FILES = ("policy.safetensors", "optimizer.safetensors", "state.json")
AVERAGE = "average.safetensors"


@dataclass
class RunState:
    """All that a run remembers besides weights and moments.

    step: steps done; optimizer_steps: of the engine, which its moving average goes by. next_index: number of the next
    crystal. scored: crystals scored by the training reward. seconds: by phase, over all sessions. monitor: the
    monitor's own memory. attained: what is known of L(base) and L*, see `health.Attained`. next_unscored: number of the
    next crystal that nobody scores, see `waves`. spacegroups: memory of `spacegroups.SpacegroupShares`.
    """

    step: int = 0
    optimizer_steps: int = 0
    next_index: int = 0
    baseline: float | None = None
    scored: int = 0
    held_out_scored: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=dict)
    attained: dict[str, Any] = field(default_factory=dict)
    next_unscored: int = 0
    spacegroups: dict[str, Any] = field(default_factory=dict)

    def spend(self, **seconds: float) -> None:
        """Count time by phase."""
        for phase, amount in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + amount


def save(folder: Path, engine: Engine, state: RunState, *, keep: int) -> Path:
    """Write `folder`/step-..., durable before it gets its name, then remove all but the newest `keep`.

    All ranks must call; the first one writes.
    """
    path = folder / f"step-{state.step:07d}"
    state.optimizer_steps = engine.steps
    whole = engine.state_dict()
    if not engine.ranks.leads:
        return path
    with atomic_directory(path) as temporary:
        save_file(_storable(whole["model"]), temporary / "policy.safetensors")
        save_file(_storable(_flatten(whole["optimizer"], engine.model)), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state)))
        names: list[str] = list(FILES)
        if "average" in whole:
            save_file(_storable(whole["average"]), temporary / AVERAGE)
            names.append(AVERAGE)
        (temporary / "manifest.json").write_text(json.dumps({name: sha256_file(temporary / name) for name in names}))
    for old in _steps(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(folder: Path, engine: Engine) -> RunState | None:
    """Put the newest whole checkpoint into `engine`; None when there is none.

    A damaged one is named in a warning and passed over: the steps since the one before are then made again, from
    the journal's scores. The first rank reads, and tells the others.
    """
    found = engine.ranks.by_first(lambda: _read_newest(folder))
    if found is None:
        return None
    state, policy, moments, average = found
    optimizer = _unflatten(moments, engine.model)
    whole = {"steps": state.optimizer_steps, "model": policy, "optimizer": optimizer}
    engine.load_state_dict(whole | ({} if average is None else {"average": average}))
    return state


def _read_newest(
    folder: Path,
) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None] | None:
    if not folder.exists():
        return None
    for old in folder.glob(".step-*.old"):
        recover_directory(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
    for path in _steps(folder):
        problem = damage(path)
        if problem is None:
            state = RunState(**json.loads((path / "state.json").read_text()))
            policy, moments = (load_file(path / f"{name}.safetensors") for name in ("policy", "optimizer"))
            return state, policy, moments, load_file(path / AVERAGE) if (path / AVERAGE).exists() else None
        log.warning("checkpoint %s is damaged (%s): falling back to the one before", path, problem)
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint directory; None when nothing is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if sorted(set(manifest) - {AVERAGE}) != sorted(FILES):
            return "manifest.json does not name the right files"
        for name in manifest:
            if sha256_file(path / name) != manifest[name]:
                return f"{name} does not have the recorded hash"
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        return str(error)
    return None


def _steps(folder: Path) -> list[Path]:
    """Checkpoint directories, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _flatten(moments: Mapping[str, Mapping[str, Tensor]], model: CrystalFormer) -> dict[str, Tensor]:
    """Adam's moments and step counts, by the parameter's number in the model."""
    order = optimizer_order(model)
    return {f"{order[int(index)]}/{name}": value for index, values in moments.items() for name, value in values.items()}


def _unflatten(tensors: Mapping[str, Tensor], model: CrystalFormer) -> dict[str, dict[str, Tensor]]:
    """The inverse of `_flatten`."""
    index = {number: str(index) for index, number in enumerate(optimizer_order(model))}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split("/")
        moments.setdefault(index[int(number)], {})[name] = value
    return moments


def claim(path: Path, identity: dict[str, Any]) -> None:
    """Record what defines a run; raises InputError naming both values when `path` holds another run."""
    if not path.exists():
        write_json(path, identity)
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"cannot be read ({error})", source=path, remedy="choose another output directory") from None
    for name, was, now in _differences(before, json.loads(json.dumps(identity))):
        raise InputError(
            f"this run was started with {name} = {was!r} and cannot go on with {now!r}",
            source=path,
            remedy=f"restore {name}, or choose another output directory",
        )


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves that differ, as (dotted name, before, now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(before.keys() | now.keys())
            for difference in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [(name, before, now)]
