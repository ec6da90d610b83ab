"""Predictors of the dielectric constant on the same test crystals, from the tables that their trainings left.

    python benchmarks/predictor.py work/dielectric/tensor work/dielectric/constant

Takes outputs of `crystalforge train-predictor` whose splits follow the composition (`predictor.split: composition`),
with one seed and one table: the crystals that are in every test split are then in nobody's training. Prints one JSON
object: for each predictor the mean absolute error of the constant (for tensors their mean eigenvalue) with its 95 %
interval, the median error, Spearman's rank correlation; the same of their mean, and of predicting the median.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from crystalforge.common.errors import InputError
from crystalforge.evaluation.metrics import statistics
from crystalforge.stages.train_predictor import DIAGONAL

CONSTANT = ("eps_total",)


def main() -> None:
    """Read the arguments, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, nargs="+", help="directories of train-predictor")
    outputs = parser.parse_args().outputs
    print(json.dumps(compare(outputs), indent=2))


def compare(outputs: list[Path]) -> dict[str, object]:
    """The figures; raises InputError when the trainings have no test crystal in common, or differ in its value."""
    tables = [constants(path / "predictor" / "parity.csv") for path in outputs]
    tests = [{row for row, (part, _, _) in table.items() if part == "test"} for table in tables]
    common = sorted(set.intersection(*tests))
    if not common:
        raise InputError("no test crystal in common", remedy="train with split: composition, one seed and one table")
    true = np.array([tables[0][row][1] for row in common])
    for path, table in zip(outputs, tables, strict=True):
        if not np.allclose([table[row][1] for row in common], true, rtol=1e-3):
            raise InputError("was trained on another table than the first one", source=path)
    guesses = [np.array([table[row][2] for row in common]) for table in tables]
    names = [path.name for path in outputs]
    median = float(np.median([value for part, value, _ in tables[0].values() if part == "train"]))
    found = {name: errors(true, guess) for name, guess in zip(names, guesses, strict=True)}
    if len(guesses) > 1:
        found["mean of all"] = errors(true, np.mean(guesses, axis=0))
    return {"test_crystals": len(common), **found, "the training median": errors(true, np.full(len(true), median))}


def constants(file: Path) -> dict[int, tuple[str, float, float]]:
    """Split, true and predicted constant by row of the table that was trained on; extra rows are left out."""
    with file.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["table"] == "0"]
    names = DIAGONAL if set(DIAGONAL) <= set(rows[0]) else CONSTANT
    return {
        int(row["index"]): (
            row["split"],
            float(np.mean([float(row[name]) for name in names])),
            float(np.mean([float(row[f"{name}_predicted"]) for name in names])),
        )
        for row in rows
    }


def errors(true: Float64[np.ndarray, " n"], guess: Float64[np.ndarray, " n"]) -> dict[str, float | None]:
    """Mean absolute error with its interval, median absolute error, rank correlation (None for a constant guess)."""
    from scipy.stats import spearmanr

    error = np.abs(guess - true)
    mean = statistics.mean(error)
    ranked: Any = spearmanr(true, guess) if np.ptp(guess) else (None,)
    rank = None if ranked[0] is None else round(float(ranked[0]), 3)
    figures = {"mae": mean.value, "low": mean.low, "high": mean.high, "median": float(np.median(error))}
    return {**{name: round(value, 3) for name, value in figures.items()}, "spearman": rank}


if __name__ == "__main__":
    main()
