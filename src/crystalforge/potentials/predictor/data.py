"""Tables of structures and properties, and their division into training, validation and test.

Shapes: B crystals, K targets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.cif import parse_cif
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.structures import crystal_of, read_poscar
from crystalforge.crystal.reading.text import encoding_of
from crystalforge.potentials.base import unsuitable
from crystalforge.potentials.predictor.config import PredictorConfig

SPLITS = ("train", "val", "test")
FEWEST = 10  # rows that a training needs at least
STRUCTURE_COLUMNS = {
    "arrays": {"lattice", "atomic_numbers", "frac_coords"},
    "cif": {"cif"},
    "poscar": {"poscar"},
}
"""Ways of giving a structure, by the columns that they need."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What there is to learn from.

    index: row number in its table; table: 0 for `data`, 1, 2, ... for `extra`; split: rows by part, disjoint; left_out:
    how many rows were left out for which reason.
    """

    crystals: list[Crystal]
    targets: Float64[np.ndarray, "B K"]
    index: Int64[np.ndarray, " B"]
    table: Int64[np.ndarray, " B"]
    split: dict[str, Int64[np.ndarray, " _"]]
    left_out: dict[str, int]


def read_examples(config: PredictorConfig, elements: frozenset[int], *, cutoff: float, seed: int) -> Examples:
    """Read `config.data`, divide it, and add `config.extra` to the training split.

    elements: atomic numbers that the model knows; cutoff: Å within which each atom needs a neighbour. Raises InputError
    when a file lacks columns, or too few rows remain.
    """
    crystals, targets, index, left_out, total = _usable_rows(config.data, config, elements, cutoff)
    if len(crystals) < FEWEST:
        raise InputError(
            f"{len(crystals)} usable rows remain of {total} ({left_out})",
            source=config.data,
            remedy=f"give at least {FEWEST} rows, or widen `bounds`",
        )
    if config.split == "random":
        split = split_rows(len(crystals), config.fractions, seed)
    else:
        split = split_compositions([composition(crystal) for crystal in crystals], config.fractions, seed)
        if empty := [part for part, rows in split.items() if not len(rows)]:
            raise InputError(
                f"no composition falls to the split {', '.join(empty)}",
                source=config.data,
                remedy="give more compositions, another seed, or predictor.split=random",
            )
    table = [0] * len(crystals)
    judged = {composition(crystals[row]) for part in ("val", "test") for row in split[part]}
    left_out["in_val_or_test"] = 0
    for number, path in enumerate(config.extra, start=1):
        more, values, rows, reasons, _ = _usable_rows(path, config, elements, cutoff)
        new = [k for k, crystal in enumerate(more) if composition(crystal) not in judged]
        for reason, count in (reasons | {"in_val_or_test": len(more) - len(new)}).items():
            left_out[reason] += count
        split["train"] = np.concatenate([split["train"], np.arange(len(crystals), len(crystals) + len(new))])
        crystals += [more[k] for k in new]
        targets += [values[k] for k in new]
        index += [rows[k] for k in new]
        table += [number] * len(new)
    return Examples(crystals, np.stack(targets), np.array(index), np.array(table), split, left_out)


def split_rows(count: int, fractions: tuple[float, float, float], seed: int) -> dict[str, Int64[np.ndarray, " _"]]:
    """Disjoint random rows per split; each split gets at least one row."""
    order = np.random.default_rng(seed).permutation(count)
    shares = np.array(fractions) / sum(fractions)
    n_val, n_test = (max(1, round(share * count)) for share in shares[1:])
    ends = (count - n_val - n_test, count - n_test)
    return dict(zip(SPLITS, np.split(order, ends), strict=True))


def split_compositions(
    compositions: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> dict[str, Int64[np.ndarray, " _"]]:
    """Rows per split by a hash of (seed, composition): shares hold on average, and whatever other rows there are."""
    ends = np.cumsum(fractions)[:2] / sum(fractions)
    part = np.array([int(np.searchsorted(ends, _unit(f"{seed}|{name}"), side="right")) for name in compositions])
    return {name: np.flatnonzero(part == number) for number, name in enumerate(SPLITS)}


def composition(crystal: Crystal) -> str:
    """The reduced composition as sorted `Z:count` pairs."""
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    divisor = reduce(math.gcd, counts.tolist())
    return " ".join(f"{z}:{count // divisor}" for z, count in zip(numbers.tolist(), counts.tolist(), strict=True))


def _unit(text: str) -> float:
    """A number in [0, 1) that looks random and follows from the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64


def _usable_rows(
    path: Path, config: PredictorConfig, elements: frozenset[int], cutoff: float
) -> tuple[list[Crystal], list[Float64[np.ndarray, " K"]], list[int], dict[str, int], int]:
    """Crystals, targets and row numbers of a table, how many were left out for which reason, and how many there are."""
    if not path.is_file():
        raise InputError("no such file", source=path, remedy="give a parquet or CSV of structures and targets")
    rows = _read_rows(path)
    columns = set(rows[0]) if rows else set()
    structure = next((kind for kind, need in STRUCTURE_COLUMNS.items() if need <= columns), None)
    if structure is None or set(config.targets) - columns:
        raise InputError(
            f"has the columns {', '.join(sorted(columns)) or 'none'}",
            source=path,
            remedy="give lattice + atomic_numbers + frac_coords, or cif, or poscar, and the targets "
            + ", ".join(config.targets),
        )
    crystals, targets, index = [], [], []
    left_out = {"out_of_bounds": 0, "unusable": 0}
    low, high = config.bounds or (-np.inf, np.inf)
    for number, row in enumerate(rows):
        try:
            values = np.array([np.nan if row[name] is None else row[name] for name in config.targets], dtype=np.float64)
        except (TypeError, ValueError):  # a word where a number belongs
            left_out["unusable"] += 1
            continue
        if not ((values >= low) & (values <= high)).all():  # NaN is outside too
            left_out["out_of_bounds"] += 1
            continue
        crystal = _read_structure(row, structure)
        if crystal is None or unsuitable(crystal, elements) is not None or _lonely(crystal, cutoff):
            left_out["unusable"] += 1
            continue
        crystals.append(crystal)
        targets.append(values)
        index.append(number)
    return crystals, targets, index, left_out, len(rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path).to_pylist()
        read = csv.ReadOptions(encoding=encoding_of(path).removesuffix("-sig"))  # Arrow drops the mark itself
        return csv.read_csv(path, read, parse_options=csv.ParseOptions(newlines_in_values=True)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"is no readable table ({error})", source=path, remedy="give parquet or CSV") from error


def _read_structure(row: dict[str, Any], kind: Any) -> Crystal | None:
    try:
        if kind == "arrays":
            return crystal_of(row)
        text = row[kind]
        return None if not isinstance(text, str) else parse_cif(text) if kind == "cif" else read_poscar(text)
    except Unusable:
        return None


def _lonely(crystal: Crystal, cutoff: float) -> bool:
    from crystalforge.potentials.neighbors import neighbor_list

    return len(np.unique(neighbor_list([crystal], cutoff).center)) < len(crystal)
