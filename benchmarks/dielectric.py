"""What became of the figure of merit: counts from the table of an evaluation by the dielectric reward.

    python benchmarks/dielectric.py work/dielectric/evaluation/crystals.parquet

Prints one JSON object: for each model the mean figure of merit with its 95 % interval and the difference from the first
one (Welch), of all crystals and of the stable ones; the share of odd electron counts among the crystals that the gap's
model calls insulating (filled bands hold two electrons per primitive cell: without magnetism such a crystal is a
metal, and its gap an error of that model); and how many different stable crystals reach a merit, known and new.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from crystalforge.evaluation.evaluate import read_table
from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.evaluation.metrics.statistics import Estimate
from crystalforge.rewards.protocol import Status

INSULATING = 0.5  # eV; below, a predicted gap is within its model's error of none
MERIT = 30.0  # eV


def main() -> None:
    """Read the arguments, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="crystals.parquet of an evaluation")
    print(json.dumps(counts(read_table(parser.parse_args().table)), indent=2))


def counts(table: pa.Table) -> dict[str, Any]:
    """The figures by model."""
    parts = by_label(table)
    first = next(iter(parts.values()))
    return {label: model(part, first) for label, part in parts.items()}


def model(table: pa.Table, first: pa.Table) -> dict[str, Any]:
    """One model's figures beside those of the first one."""
    merit, stable, odd = table.column("reward").to_numpy(), _flag(table, "held_out_stable"), odd_electrons(table)
    scored = table.column("status").to_numpy() == Status.OK
    insulating = scored & (table.column("band_gap").to_numpy() > INSULATING)
    best = scored & stable & _flag(table, "unique") & (merit > MERIT)
    known = _flag(table, "reference_match")
    theirs, their_stable = first.column("reward").to_numpy(), _flag(first, "held_out_stable")
    return {
        "merit": _rounded(statistics.mean(merit)),
        "merit_gained": _rounded(statistics.welch(theirs, merit)),
        "merit_of_stable": _rounded(statistics.mean(merit[stable])),
        "merit_of_stable_gained": _rounded(statistics.welch(theirs[their_stable], merit[stable])),
        "odd_among_insulating": _rounded(statistics.share(odd[insulating])),
        f"different_stable_above_{MERIT:g}": int(best.sum()),
        "of_these_known": int((best & known).sum()),
        "of_these_new": int((best & ~known).sum()),
        "of_these_new_and_even": int((best & ~known & ~odd).sum()),
        "mean_disagreement": round(float(np.nanmean(table.column("disagreement").to_numpy()[scored])), 3),
    }


def odd_electrons(table: pa.Table) -> Bool[np.ndarray, " n"]:
    """Whether each cell has an odd number of electrons."""
    return np.array([sum(numbers) % 2 == 1 for numbers in table.column("atomic_numbers").to_pylist()], dtype=bool)


def _flag(table: pa.Table, name: str) -> Bool[np.ndarray, " n"]:
    return table.column(name).to_numpy().astype(bool)


def _rounded(estimate: Estimate) -> dict[str, float | int | None]:
    return {key: None if value is None else round(value, 4) for key, value in estimate.as_dict().items()}


if __name__ == "__main__":
    main()
