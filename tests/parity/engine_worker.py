"""Two training jobs, of two ranks and of one, that run every engine on the same batches: engine_worker.py STORE OUT.

Ranks are forked, which saves importing DeepSpeed three times. The first rank of each job leaves OUT/ranks-N.json: for
each engine, stage and accumulation the losses and gradient norms of STEPS steps, and the final weights. Half way,
every state goes through a snapshot into a new engine; runs named `from-...` take up the half-way snapshot of another
engine, or of another number of ranks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from crystalforge.data.batches import epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.integrations.deepspeed import DeepSpeedEngine
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.engine import Engine, MakeEngine, TorchEngine
from crystalforge.training.ranks import Ranks, open_ranks
from crystalforge.training.snapshots import load_snapshot, save_snapshot
from crystalforge.training.steps import train_step

STEPS, HALF = 20, 10
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


def main(store: TokenStore, out: Path, ranks: Ranks) -> None:
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
    if ranks.leads:
        (out / f"ranks-{ranks.world_size}.json").write_text(json.dumps(found))


def job(world_size: int, store: Path, out: Path) -> None:
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
                main(TokenStore.open(store), out, ranks)
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
        job(world_size, Path(sys.argv[1]), Path(sys.argv[2]))
