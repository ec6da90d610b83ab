"""How fast are crystals scored, and what does the service cost?   python benchmarks/reward.py [--n N] [--crystals FILE]

By default CHGNet and the embedded hull judge the embedded crystals. Another potential and another hull:

    python benchmarks/reward.py --crystals mp20.parquet --hull entries.parquet --matgl M3GNet-MP-2018.6.1-Eform --n 1000

Prints JSON: structures_per_s over gRPC with all workers, in_process_per_s on one core, service_overhead (one worker
over gRPC against the same code in process, same chunks: time of the one over time of the other, minus 1), and how the
rate scales with the crystals in a request and with the number of workers. Each figure is the best of the repeats;
those of the service and of the process alternate, so that a busy machine disturbs both alike. service_overhead_cpu is
the same ratio in processor time (client, server and worker together), which other people's load hardly touches; so do
cpu_s_per_structure and its reciprocal per_cpu_second.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from _common import finish

import crystalforge.data
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import chunks
from crystalforge.rewards import Reward, Scores, build, parse
from serving.launcher import TritonServer

CHUNK_ATOMS = 4096


def measure(config: Any, crystals: list[Crystal], instances: int, repeats: int) -> dict[str, object]:
    """All figures for one reward and one set of crystals."""
    reward = build(config)
    score_in_pieces(reward, crystals[:64], 64)  # warm: hulls, caches, lazy imports
    sizes = sorted({1, 8, 64, 256} & set(range(1, len(crystals) + 1)) | {64})
    local = served = local_cpu = served_cpu = float("inf")
    with TritonServer(config, instances=1) as server, server.connect() as remote:
        expected = remote.score(crystals)
        ours, theirs = [os.getpid()], [pid for pid in (server.server_pid, *server.worker_pids) if pid is not None]
        for _ in range(repeats):
            before = cpu_seconds(ours)
            local = min(local, seconds(lambda: score_in_pieces(reward, crystals, 64)))
            between, waiting = cpu_seconds(ours), cpu_seconds(theirs)
            served = min(served, seconds(lambda: remote.score(crystals)))
            local_cpu = min(local_cpu, between - before)
            served_cpu = min(served_cpu, cpu_seconds(ours) - between + cpu_seconds(theirs) - waiting)
    processes = {"1": len(crystals) / served}
    batches = {}
    with TritonServer(config, instances=instances) as server:
        for size in sizes:
            with server.connect(chunk_structures=size) as remote:
                remote.score(crystals[: 2 * instances * size])
                best = min(seconds(lambda: remote.score(crystals)) for _ in range(repeats if size == 64 else 1))
                batches[str(size)] = len(crystals) / best
        with server.connect() as remote:
            assert np.array_equal(remote.score(crystals).values, expected.values), "workers must not change a value"
        statistics = server.statistics()
    processes[str(instances)] = batches["64"]
    return {
        "benchmark": "reward",
        "reward": f"{config.kind}: {describe(config)}",
        "structures": len(crystals),
        "mean_atoms": float(np.mean([len(crystal) for crystal in crystals])),
        "scored_ok": float(np.mean(expected.ok)),
        "instances": instances,
        "structures_per_s": batches["64"],
        "in_process_per_s": len(crystals) / local,
        "service_overhead": served / local - 1,
        "service_overhead_cpu": served_cpu / local_cpu - 1,
        "cpu_s_per_structure": {
            "in_process": local_cpu / len(crystals),
            "service": served_cpu / len(crystals),  # client, server and worker together
        },
        "per_cpu_second": {"in_process": len(crystals) / local_cpu, "service": len(crystals) / served_cpu},
        "per_s_by_request_size": batches,
        "per_s_by_workers": processes,
        "triton_inferences": statistics.inferences,
        "triton_executions": statistics.executions,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }


def describe(config: Any) -> str:
    """The parts of the reward that decide its speed."""
    potential = getattr(config, "potential", None)
    if potential is None:
        return config.name or "-"
    weights = Path(potential.path).name if getattr(potential, "path", None) else getattr(potential, "model", "")
    return f"{potential.kind} {weights}, hull {Path(config.hull).name}"


def score_in_pieces(reward: Reward, crystals: list[Crystal], structures: int) -> Scores:
    """Score in this process, cut as the client cuts."""
    sizes = np.array([len(crystal) for crystal in crystals], dtype=np.int32)
    return Scores.concatenate([reward.score(crystals[piece]) for piece in chunks(sizes, structures, CHUNK_ATOMS)])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that processes have used, user and system (Linux)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read_crystals(path: Path, n: int, seed: int) -> list[Crystal]:
    """`n` crystals drawn from a parquet file with lattice, atomic_numbers and frac_coords."""
    table = pq.read_table(path, columns=["lattice", "atomic_numbers", "frac_coords"])
    rows = np.random.default_rng(seed).choice(table.num_rows, size=min(n, table.num_rows), replace=False)
    return [Crystal.of(*(table[name][int(row)].as_py() for name in table.column_names)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", type=Path, default=Path(crystalforge.data.__path__[0]) / "prototypes.parquet")
    parser.add_argument("--n", type=int, default=400, help="crystals to score")
    parser.add_argument("--reward", default='{"kind": "ehull"}', help="the reward's configuration as JSON")
    parser.add_argument("--matgl", type=Path, help="folder of a MatGL model to use as the potential")
    parser.add_argument("--hull", help="hull store or file of entries")
    parser.add_argument("--instances", type=int, default=2, help="workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = json.loads(arguments.reward)
    if arguments.matgl is not None:
        settings["potential"] = {"kind": "matgl", "path": str(arguments.matgl.resolve())}
    if arguments.hull is not None:
        settings["hull"] = str(Path(arguments.hull).resolve())
    torch.set_num_threads(1)
    crystals = read_crystals(arguments.crystals, arguments.n, arguments.seed)
    finish(measure(parse(settings), crystals, arguments.instances, arguments.repeats))


if __name__ == "__main__":
    main()
