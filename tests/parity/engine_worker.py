"""Two training jobs, of two ranks and of one, that run every engine on the same batches: engine_worker.py
STORE BASE OUT.

Ranks are forked, which saves importing DeepSpeed three times. The first rank of each job leaves OUT/ranks-N.json: for
each engine, stage and accumulation the losses and gradient norms of STEPS steps, and the final weights. Half way,
every state goes through a snapshot into a new engine; runs named `from-...` take up the half-way snapshot of another
engine, or of another number of ranks. PPO, balance and balance with a surrogate tune the model BASE
likewise, for TUNING_STEPS steps, in runs named `changed` from torch to another engine and back; all learn from the
crystals that torch drew, for rounding may send a draw elsewhere.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.data.batches import epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.integrations.deepspeed import DeepSpeedEngine
from crystalforge.model.checkpoint import load_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.rl import waves
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.rollout import Source, drawn_by_all
from crystalforge.rl.testing import ElementReward, ElementScreen
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.engine import Engine, MakeEngine, TorchEngine
from crystalforge.training.ranks import Ranks, open_ranks
from crystalforge.training.snapshots import load_snapshot, save_snapshot
from crystalforge.training.steps import train_step

STEPS, HALF = 20, 10
TUNING_STEPS, TUNING_HALF = 4, 2
BATCH = 13  # two ranks get seven and six rows, and with accumulation 4 four and three pieces
MODEL = ModelConfig(
    layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8, dropout=0.0, attention_dropout=0.0
)
# A clip below the norms that occur, so that clipping takes part; decay and average too.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, gradient_clip=2.0, weight_decay=0.01, warmup_steps=5, ema_decay=0.9)
ENGINES: Mapping[str, MakeEngine] = {
    "torch": TorchEngine,
    **{f"zero{stage}": partial(DeepSpeedEngine, zero_stage=stage) for stage in (0, 1, 2)},
}

# Clipped steps, several a batch; balance with earlier crystals, refused ones and a moving average.
COMMON = {
    "batch_size": 10, "learning_rate": 3e-3, "gradient_clip": 1.0, "inner_steps": 2, "minibatches": 2,
    "piece_tokens": 200, "checkpoint_every": TUNING_HALF,
    "monitor": MonitorConfig(every=10, max_gap=None, min_unique=None, max_kl=None),
}  # fmt: skip
TUNING: dict[str, dict[str, Any]] = {
    "ppo": COMMON | {"algorithm": "ppo"},
    "balance": COMMON
    | {"algorithm": "balance", "gradient_clip": 13.0, "filter": True, "kept": 8, "average": 0.9, "fade": 0.5},
    "surrogate": COMMON
    | {"algorithm": "balance", "gradient_clip": 13.0, "filter": True, "batch_size": 30, "fade": 0.5,
       "surrogate": {"waves": 2, "batch_size": 24, "minibatch": 16}},
}  # fmt: skip


class Course:
    """What one engine did."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.loss, self.norm = engine, [], []

    def go(self, store: TokenStore, accumulation: int, steps: range) -> None:
        config = PretrainConfig(batch_size=BATCH, accumulation=accumulation, piece_tokens=2000)
        for rows in batches(store, steps):
            metrics = train_step(self.engine, store, rows, config, seed=1)
            self.loss.append(metrics["train/nll"])
            self.norm.append(metrics["gradient_norm"])

    def report(self) -> dict[str, list[float]]:
        weights = torch.cat([p.detach().reshape(-1) for p in self.engine.model.parameters()])
        average = torch.cat([v.reshape(-1) for v in self.engine.averaged_state().values()])
        return {"loss": self.loss, "norm": self.norm, "weights": weights.tolist(), "average": average.tolist()}


def batches(store: TokenStore, steps: range) -> Iterator:
    for number in steps:
        yield next(epoch_batches(store, "train", BATCH, seed=1, epoch=number))


def new(make: MakeEngine, ranks: Ranks, optimizer: OptimizerConfig = OPTIMIZER) -> Engine:
    torch.manual_seed(5)
    model = CrystalFormer(MODEL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return make(model, optimizer, ranks)


def drawn_before(folder: Path) -> Any:
    """`waves.drawn_by_all`, whose unscored crystals are those that the first engine drew."""

    def draw(model: CrystalFormer, source: Source, first: int, count: int, ranks: Ranks) -> Any:
        file = folder / f"{first}.pickle"
        drawn = ranks.by_first(lambda: pickle.loads(file.read_bytes()) if file.exists() else None)
        if drawn is None:
            drawn = drawn_by_all(model, source, first, count, ranks)
            if ranks.leads:
                folder.mkdir(parents=True, exist_ok=True)
                file.write_bytes(pickle.dumps(drawn))
        return drawn

    return draw


def tune(algorithm: str, base: Path, out: Path, steps: int, ranks: Ranks, make: MakeEngine) -> None:
    """Fine-tuning from wherever `out` stands."""
    weights = np.zeros(230)
    weights[[61, 220, 224, 226]] = 1.0
    config = FinetuneConfig.model_validate(TUNING[algorithm] | {"steps": steps})
    reward = ElementReward(dict.fromkeys(range(5, 25), 1.0))
    finetune(config, base, reward, weights, out, seed=3, screen=ElementScreen(), ranks=ranks, make_engine=make)


def tuned(base: Path, out: Path, ranks: Ranks) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """What every engine makes of the crystals that the oracle, torch on two ranks, drew."""
    waves.drawn_by_all = drawn_before(out / "unscored")
    for algorithm in TUNING:
        for name, make in ENGINES.items():
            folder = ranks.by_first(partial(new_run, out, algorithm, name, ranks.world_size))
            tune(algorithm, base, folder, TUNING_STEPS, ranks, make)
            yield f"{algorithm}-{name}", tuning_report(folder)
        for name in ("zero1", "zero2"):  # to it from torch, and back
            folder = ranks.by_first(partial(new_run, out, algorithm, f"{name}-changed", ranks.world_size))
            for steps, make in ((1, TorchEngine), (TUNING_HALF, ENGINES[name]), (TUNING_STEPS, TorchEngine)):
                tune(algorithm, base, folder, steps, ranks, make)
            yield f"{algorithm}-{name}-changed", tuning_report(folder)


def new_run(out: Path, algorithm: str, name: str, world_size: int) -> Path:
    """A folder to tune in, with the oracle's crystals once there are any."""
    oracle, folder = out / f"{algorithm}-torch-ranks2", out / f"{algorithm}-{name}-ranks{world_size}"
    if oracle.exists():
        shutil.copytree(oracle / "samples", folder / "samples")
    return folder


def tuning_report(folder: Path) -> dict[str, list[float]]:
    """Losses, norms and weights, as those of a `Course`; `weights` is what is handed over, the average where kept."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = torch.cat([p.detach().reshape(-1) for p in load_model(folder / "model").model.parameters()])
    return {
        "loss": [line["update/loss"] for line in lines],
        "norm": [line["gradient/norm"] for line in lines],
        "weights": weights.tolist(),
    }


def main(store: TokenStore, base: Path, out: Path, ranks: Ranks) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for accumulation in (1, 4):
        for name, make in ENGINES.items():
            course = Course(new(make, ranks))
            course.go(store, accumulation, range(HALF))
            state = course.engine.state_dict()
            folder = out / f"{name}-x{accumulation}-ranks{ranks.world_size}"
            if ranks.leads:
                save_snapshot(folder, HALF, state)
            restored = ranks.share(load_snapshot(folder) if ranks.leads else None)
            assert restored is not None
            course.engine = new(make, ranks)
            course.engine.load_state_dict(restored[1])
            course.go(store, accumulation, range(HALF, STEPS))
            found[f"{name}-x{accumulation}"] = course.report()
    half = OPTIMIZER.model_copy(update={"precision": "bfloat16"})
    for name in ("torch", "zero1", "zero2"):
        course = Course(new(ENGINES[name], ranks, half))
        course.go(store, 1, range(HALF))
        found[f"{name}-bfloat16"] = course.report()
    # The other engine's state, and another number of ranks'
    for name, origin in (("zero2", "torch-x1"), ("torch", "zero1-x4"), ("zero1", "zero2-x1"), ("zero0", "zero2-x4")):
        for other in sorted(out.glob(f"{origin}-ranks*")):
            restored = load_snapshot(other)
            assert restored is not None
            course = Course(new(ENGINES[name], ranks))
            course.engine.load_state_dict(restored[1])
            course.go(store, 1, range(HALF, STEPS))
            found[f"{name}-from-{other.name}"] = course.report()
    found |= dict(tuned(base, out, ranks))
    if ranks.leads:
        (out / f"ranks-{ranks.world_size}.json").write_text(json.dumps(found))


def job(world_size: int, store: Path, base: Path, out: Path) -> None:
    """Fork the ranks, and wait for them; the first failure ends all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = set()
    for rank in range(world_size):
        process = os.fork()
        if process:
            processes.add(process)
            continue
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open_ranks("cpu") as ranks:
                main(TokenStore.open(store), base, out, ranks)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while processes:
        process, status = os.wait()
        processes.remove(process)
        if status:
            for other in processes:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a rank of {world_size} failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    import torch._dynamo  # which every first step of an optimiser imports, for a second and more

    for world_size in (2, 1):  # two first: one takes up what they left
        job(world_size, *(Path(name) for name in sys.argv[1:]))
