"""What a checkpoint costs: seconds to write and to read one, and its size, full configuration.

    python benchmarks/checkpoint.py [--folder DIR] [--repeats 5] [--out FILE]

Prints JSON. Writing includes hashing and the wait until the disk has it; reading includes the check of the hashes.
`overhead` is the share of training time at the default of one checkpoint a minute. Weights, two moments and the
weights' moving average, as pre-training stores them, and a tuning run's own checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import finish

from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.rl import checkpoint
from crystalforge.rl.checkpoint import RunState
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.engine import TorchEngine
from crystalforge.training.snapshots import load_snapshot, save_snapshot


def trained(ema_decay: float) -> TorchEngine:
    """A full model after one step, so that its moments exist."""
    engine = TorchEngine(CrystalFormer(ModelConfig()), OptimizerConfig(ema_decay=ema_decay))
    engine.add_gradients([torch.ones_like(p) for p in engine.model.parameters()])
    engine.step()
    return engine


def timed(action: Callable[[], object], repeats: int) -> dict[str, float]:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return {"median_s": statistics.median(seconds), "worst_s": max(seconds)}


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for such things")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        training, tuning = Path(name) / "training", Path(name) / "tuning"
        engine = trained(0.999)
        state = {"engine": engine.state_dict(), "cursor": {}, "identity": ""}
        save = timed(lambda: save_snapshot(training, 1, state, keep=1), arguments.repeats)
        load = timed(lambda: load_snapshot(training), arguments.repeats)
        policy = trained(0.0)
        save_rl = timed(lambda: checkpoint.save(tuning, policy, RunState(step=1), keep=1), arguments.repeats)
        load_rl = timed(lambda: checkpoint.load_newest(tuning, policy), arguments.repeats)
        result = {
            "benchmark": "checkpoint",
            "parameters": sum(p.numel() for p in engine.model.parameters()),
            "pretrain": {
                "save": save,
                "load": load,
                "size_mb": size_mb(training),
                "overhead": save["median_s"] / PretrainConfig().checkpoint_seconds,
            },
            "finetune": {"save": save_rl, "load": load_rl, "size_mb": size_mb(tuning)},
            "repeats": arguments.repeats,
        }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
