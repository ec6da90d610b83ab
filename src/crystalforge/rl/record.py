"""What a run's directory says of it: what defines the run, how far it was asked to go, its metrics, its result."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.files import atomic_file
from crystalforge.model.checkpoint import weights_hash
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import Reward
from crystalforge.rl.config import FinetuneConfig

# Settings that say how far a run goes, how often it is saved and by which means it is made, not where it goes: they
# may change on resumption.
EXTENT = {"steps", "max_scored", "max_seconds", "checkpoint_every", "keep_checkpoints", "engine"}

METRICS, RESULT = "metrics.jsonl", "result.json"


@dataclass(frozen=True)
class FinetuneResult:
    """What came out. stopped: why the run ended before its last step, or None. metrics: those of the last step.

    monitor: what its looks came to, see `monitor.conclusion`.
    """

    model_dir: Path
    steps: int
    stopped: str | None
    scored: int
    seconds: dict[str, float]
    metrics: dict[str, float]
    monitor: dict[str, Any] = field(default_factory=dict)


def identity_of(
    config: FinetuneConfig,
    frozen: CrystalFormer,
    reward: Reward,
    held_out: Reward | None,
    weights: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """What defines the trajectory; JSON-able."""
    return {
        "seed": seed,
        "base": weights_hash(frozen),
        "reward": _version(reward),
        "held_out": None if held_out is None else _version(held_out),
        "spacegroups": {str(g + 1): float(w) for g, w in enumerate(weights) if w > 0},
        # The held-out judge is known by its version above: its files may move.
        "config": config.model_dump(mode="json", exclude=dict.fromkeys(EXTENT, True) | {"monitor": {"held_out"}}),
    }


def _version(reward: Reward) -> dict[str, str]:
    return {"name": reward.version.name, "digest": reward.version.digest}


def extent(config: FinetuneConfig) -> dict[str, Any]:
    """How far a run was asked to go."""
    return {"steps": config.steps, "max_scored": config.max_scored, "max_seconds": config.max_seconds}


def finished(out: Path, config: FinetuneConfig) -> FinetuneResult | None:
    """The result of a run that has already gone as far as asked, or that the monitor ended."""
    path = out / RESULT
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    asked = record.pop("asked")
    if asked != extent(config) and not (record["stopped"] or "").startswith("monitor"):
        return None  # a finished run is asked to go further
    return FinetuneResult(**record | {"model_dir": out / record["model_dir"]})


def cut_metrics(path: Path, step: int) -> dict[str, float]:
    """Drop the lines of steps that will be made again, and a line cut short by a kill; give the last that stays."""
    kept = [row for row in rows(path) if row["step"] < step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}


def rows(path: Path) -> list[dict[str, Any]]:
    """The metrics of every step, up to a line that a kill cut short."""
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
