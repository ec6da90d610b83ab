"""Samples that lie in files already: what `crystalforge sample` or an evaluation wrote, or any parquet of crystals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crystalforge.common.errors import InputError
from crystalforge.crystal import MAX_SITES, Crystal, Tokens
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.structures import crystal_of
from crystalforge.evaluation.drawing.samples import SampleSet

TOKENS = ("spacegroup", "wyckoff", "element", "coords")
LATTICES = ("token_lattice", "lattice_parameters")  # of the tokens, as `sample` and as an evaluation name them
CRYSTALS = ("lattice", "atomic_numbers", "frac_coords")


def read_samples(label: str, path: Path, *, seed: int = 0) -> SampleSet:
    """The samples in a parquet file, or in all parquet files of a directory in the order of their names.

    With token columns the crystals are built anew from the tokens, primitive; else from the columns lattice (9 numbers,
    row vectors, Å), atomic_numbers and frac_coords; a row that holds no crystal counts as one that was not built.
    log_prob and log_prob_base are taken over where they are. From an evaluation's table only the rows of the model
    called `label` are taken, if there are any. Raises InputError when there is no such file, or it holds no crystals.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files], promote_options="default")
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"holds no readable samples ({error})", source=path, remedy="give parquet files, such as `sample` writes"
        ) from error
    names = table.column_names
    if "label" in names and label in set(table.column("label").to_pylist()):
        table = table.filter(pc.field("label") == label)
    lattice = next((name for name in LATTICES if name in names), None)
    known = {
        name: table.column(name).to_numpy().astype(np.float64)
        for name in ("log_prob", "log_prob_base")
        if name in names
    }
    if lattice is not None and set(TOKENS) <= set(names) and (table.column("spacegroup").to_numpy() > 0).all():
        return SampleSet.from_tokens(label, _tokens(table, lattice), seed=seed, **known)
    missing = [name for name in CRYSTALS if name not in names]
    if missing or not len(table):
        problem = f"has no column {missing[0]!r}" if missing else "holds no samples"
        raise InputError(problem, source=path, remedy=f"give parquet files with the columns {', '.join(CRYSTALS)}")
    crystals: list[Crystal | None] = []
    odd: list[str] = []
    for number, row in enumerate(table.select(list(CRYSTALS)).to_pylist(), start=1):
        crystal = None
        if any(row[name] for name in CRYSTALS):  # a row without any is a crystal that was not built, and says so
            try:
                crystal = crystal_of(row)
            except Unusable as error:
                odd.append(f"row {number}: {error}")
        crystals.append(crystal)
    if odd:
        print(f"{path}: {len(odd)} of {len(crystals)} rows hold no crystal ({odd[0]})", file=sys.stderr)
    return SampleSet.of(label, crystals, seed=seed, **known)


def _tokens(table: pa.Table, lattice: str) -> Tokens:
    size = len(table)
    slots = max([MAX_SITES, *map(len, table.column("wyckoff").to_pylist())])
    wyckoff, element = np.zeros((size, slots), np.int32), np.zeros((size, slots), np.int32)
    coords = np.zeros((size, slots, 3))
    columns = (table.column(name).to_pylist() for name in ("wyckoff", "element", "coords"))
    for row, (letters, elements, places) in enumerate(zip(*columns, strict=True)):
        wyckoff[row, : len(letters)], element[row, : len(elements)] = letters, elements
        coords[row, : len(letters)] = np.reshape(places, (-1, 3))
    spacegroup = table.column("spacegroup").to_numpy().astype(np.int32)
    return Tokens(spacegroup, wyckoff, element, coords, np.array(table.column(lattice).to_pylist(), dtype=np.float64))
