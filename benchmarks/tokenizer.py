"""Structures tokenised per second, by number of processes. Prints one JSON object.

    python benchmarks/tokenizer.py [--parquet FILE] [--limit 1000] [--repeats 5] [--processes 1 2]

Without a file it takes the 413 fixture crystals of tests/parity (random crystals of 229 space groups and real
ones). A parquet file needs the columns lattice (9 numbers), atomic_numbers and frac_coords (flattened).

`structures_per_s` is the median over the repeats of crystals / wall time for each number of processes, and
`per_core` divides it by that number. `cpu_structures_per_s` counts this process's own CPU seconds in the
serial run: unlike wall time it does not suffer from other work on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from _common import finish

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.convert import tokenize_many

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "tokenizer_structures.npz"


def load(parquet: Path | None, limit: int) -> list[Crystal]:
    """The crystals to tokenise: evenly spread rows of a parquet file, or the fixtures."""
    if parquet is None:
        with np.load(FIXTURES) as archive:
            packed = PackedCrystals(
                archive["lattice"], archive["n_atoms"], archive["numbers"].astype(np.int32), archive["frac"]
            )
        return [crystal for crystal in packed.unpack() if crystal is not None][:limit]
    import pyarrow.parquet as pq

    table = pq.read_table(parquet, columns=["lattice", "atomic_numbers", "frac_coords"])
    rows = np.linspace(0, len(table) - 1, min(limit, len(table))).astype(int)
    return [
        Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]) for row in table.take(rows).to_pylist()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    crystals = load(options.parquet, options.limit)
    tokenize_many(crystals[:4])  # imports and tables are not what is measured
    report: dict[str, dict[str, object]] = {}
    cpu_rates: list[float] = []
    rejects: dict[str, int] = {}
    for processes in options.processes:
        rates = []
        for _ in range(options.repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            rejects = tokenize_many(crystals, processes=processes).reasons()
            rates.append(len(crystals) / (time.perf_counter() - wall))
            if processes == 1:
                cpu_rates.append(len(crystals) / (time.process_time() - cpu))
        median = statistics.median(rates)
        report[str(processes)] = {
            "structures_per_s": round(median, 1),
            "per_core": round(median / processes, 1),
            "spread": [round(min(rates), 1), round(max(rates), 1)],
        }
    result = {
        "benchmark": "tokenizer",
        "input": "fixtures" if options.parquet is None else options.parquet.name,
        "structures": len(crystals),
        "mean_atoms": round(float(np.mean([len(crystal) for crystal in crystals])), 1),
        "rejects": rejects,
        "structures_per_s": report[str(options.processes[0])]["structures_per_s"],
        "cpu_structures_per_s": round(statistics.median(cpu_rates), 1) if cpu_rates else None,
        "by_processes": report,
        "repeats": options.repeats,
    }
    finish(result, packages=("numpy", "spglib"))


if __name__ == "__main__":
    main()
