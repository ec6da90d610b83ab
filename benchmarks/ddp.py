"""What a second process brings: crystals per second of maximum-likelihood training on 1 and on 2 processes.

    python benchmarks/ddp.py [--engine torch|deepspeed] [--zero-stage 1] [--processes 1 2] [--device auto] [--out FILE]

Prints JSON. `strong`: the same batch shared out; `weak`: the same batch for each process. Efficiency is the rate on n
processes over n times the rate on one. Each process has one thread. A core that somebody else uses halves the rate of
two processes: `busy` is the share of time that the slowest process had its core, and where it is well below 1 the
efficiency per processor second (`cpu_efficiency`) is the one to read. `sum_s`: one sum of all gradients over the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import finish
from train import made_up_store

from crystalforge.data.batches import epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.stages.engines import engine_maker
from crystalforge.training.config import EngineConfig, OptimizerConfig, PretrainConfig
from crystalforge.training.ranks import Ranks, open_ranks
from crystalforge.training.steps import train_step


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["torch", "deepspeed"], default="torch")
    parser.add_argument("--zero-stage", type=int, choices=[0, 1, 2], default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8, help="steps of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # the store; under torchrun
    return parser


def worker(arguments: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """One rank of one measurement."""
    store = TokenStore.open(arguments.worker)
    optimizer = OptimizerConfig(precision=arguments.precision)
    settings = EngineConfig(name=arguments.engine, zero_stage=arguments.zero_stage)
    engine = engine_maker(settings)(CrystalFormer(ModelConfig()).to(ranks.device), optimizer, ranks)
    size = sum(p.numel() for p in engine.model.parameters())
    found: dict[str, Any] = {}
    for kind, batch in (("strong", arguments.batch), ("weak", arguments.batch * ranks.world_size)):
        config = PretrainConfig(batch_size=batch, optimizer=optimizer, piece_tokens=1 << 20)
        plan = epoch_batches(store, "train", batch, seed=0, epoch=0)
        rates, cpu, busy = [], [], []
        for repeat in range(arguments.repeats + 1):  # the first warms up
            ranks.first(0.0)
            began, began_cpu = time.perf_counter(), time.process_time()
            done = 0
            for _ in range(arguments.steps):
                rows = next(plan)
                train_step(engine, store, rows, config, seed=0)
                done += len(rows)
            seconds, processor = time.perf_counter() - began, time.process_time() - began_cpu
            if repeat:
                every = ranks.gather(processor)
                rates.append(done / seconds)
                cpu.append(done / sum(every))
                busy.append(min(every) / seconds)
        found[kind] = {
            "samples_per_s": statistics.median(rates),
            "spread": [min(rates), max(rates)],
            "samples_per_cpu_s": statistics.median(cpu),
            "busy": statistics.median(busy),
        }
    flat, sums = torch.zeros(size, device=ranks.device), []
    for _ in range(5):
        ranks.first(0.0)
        began = time.perf_counter()
        ranks.sum(flat).sum().item()
        sums.append(time.perf_counter() - began)
    return found | {"sum_s": statistics.median(sums), "parameters": size, "device": ranks.device}


def measure(processes: int, arguments: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Start `processes` ranks on this machine; what the first of them found."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    answer = subprocess.run(
        [*launcher, __file__, *sys.argv[1:], "--worker", str(store)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    arguments = parser().parse_args()
    if arguments.worker:
        torch.set_num_threads(1)
        with open_ranks(arguments.device) as ranks:
            found = worker(arguments, ranks)
            if ranks.leads:
                print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = made_up_store(Path(folder) / "store", 20_000).path
        runs = {count: measure(count, arguments, store) for count in arguments.processes}
    first = min(runs)
    for count, run in runs.items():
        for kind in ("strong", "weak"):
            rate, alone = run[kind], runs[first][kind]
            rate["efficiency"] = first * rate["samples_per_s"] / (count * alone["samples_per_s"])
            rate["cpu_efficiency"] = rate["samples_per_cpu_s"] / alone["samples_per_cpu_s"]
    result = {
        "benchmark": "ddp",
        "engine": arguments.engine if arguments.engine == "torch" else f"deepspeed, ZeRO {arguments.zero_stage}",
        "precision": arguments.precision,
        "batch": arguments.batch,
        "processes": runs,
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
