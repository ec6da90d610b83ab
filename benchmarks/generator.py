"""What a model's crystals are like before anything is refused: shares of an evaluation's table. Prints JSON.

    crystalforge evaluate -c recipes/stability.yaml --base mp20 --data work/data -o work/quality \\
      --set reward.potential.path=M3GNet-MP-2018.6.1-Eform --set evaluate.relax=null
    python benchmarks/generator.py work/quality --label base

Overlapping: two atoms, images included, closer than 0.7 of the sum of their covalent radii (Cordero et al. 2008).
The rest are the evaluation's own figures: stable (E_hull < 0.1 eV/atom as generated) by the reward, which refuses
overlapping atoms, and by the held-out judge, which does not; unique, novel, S.U.N.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crystalforge.crystal import Crystal
from crystalforge.evaluation.metrics.statistics import Estimate, share
from crystalforge.evaluation.metrics.summary import estimate
from crystalforge.rewards.guards import closest_approach, shortest_bond

OVERLAP, TOUCHING = 0.7, 0.5  # of the covalent radii; Å
FIGURES = {
    "stable_rate": "stable by M3GNet, hull of 2018 (overlaps refused)",
    "held_out_stable_rate": "stable by CHGNet, its own hull",
    "unique_rate": "unique",
    "novel_rate": "novel",
    "sun_rate": "stable, unique and novel",
}


def main() -> None:
    """Read the arguments, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="output of `crystalforge evaluate`")
    parser.add_argument("--label", default="base", help="which of its models")
    arguments = parser.parse_args()
    table = pq.read_table(arguments.evaluation / "crystals.parquet")
    print(json.dumps(quality(table.filter(pc.field("label") == arguments.label)), indent=2))


def quality(table: pa.Table) -> dict[str, Any]:
    """Shares of one model's rows, in percent, each with its 95 % interval."""
    crystals = [_crystal(row) for row in table.select(["lattice", "atomic_numbers", "frac_coords"]).to_pylist()]
    built = [crystal for crystal in crystals if crystal is not None]
    lost = np.ones(len(crystals) - len(built), dtype=bool)  # what is no crystal has no distance, and counts as bad
    found: dict[str, Estimate] = {
        "overlapping, < 0.7 of the covalent radii": share(np.concatenate([shortest_bond(built) < OVERLAP, lost])),
        "atoms closer than 0.5 Å": share(np.concatenate([closest_approach(built, TOUCHING) < TOUCHING, lost])),
    }
    figures = estimate(table)
    found |= {caption: figures[name] for name, caption in FIGURES.items() if name in figures}
    return {
        "benchmark": "generator",
        "crystals": len(crystals),
        "seed": int(table.column("seed")[0].as_py()),
        "percent": {name: 100 * value.value for name, value in found.items()},
        "interval": {name: [100 * value.low, 100 * value.high] for name, value in found.items()},
    }


def _crystal(row: dict[str, Any]) -> Crystal | None:
    if not row["atomic_numbers"]:
        return None
    lattice, frac = np.reshape(row["lattice"], (3, 3)), np.reshape(row["frac_coords"], (-1, 3))
    return Crystal.of(lattice, row["atomic_numbers"], frac)


if __name__ == "__main__":
    main()
