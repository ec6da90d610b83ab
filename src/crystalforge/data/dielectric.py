"""Dielectric data of several origins as one table that `train-predictor` reads.

1. Full tensors: Petousis et al., Sci. Data 4, 160134 (2017), the CSV that matminer distributes: structure (a POSCAR in
   the column `meta`), `e_total` and `e_electronic` as 3 x 3 lists.
2. Constants of later Materials Project entries: parquet with material_id, eps_total and, where there is one, a CIF.
   Rows without a CIF find their structure by material_id in further parquet tables.

A material of the first source is left out of the second. Nothing is left out for its value: bounds are the training's
affair (`predictor.bounds`).

Output columns: material_id, formula, lattice (9 floats, row vectors, Å), atomic_numbers, frac_coords, eps_xx .. eps_xy
(total tensor, symmetrised, in the frame of the lattice; null where only the constant is known), eps_total (mean
eigenvalue of the total tensor), eps_electronic, source.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file
from crystalforge.crystal import Crystal

VOIGT = (("eps_xx", 0, 0), ("eps_yy", 1, 1), ("eps_zz", 2, 2), ("eps_yz", 1, 2), ("eps_xz", 0, 2), ("eps_xy", 0, 1))
STRUCTURE = ("material_id", "lattice", "atomic_numbers", "frac_coords")
CELL_BYTES = 1 << 24  # the csv module's own limit of 128 KiB is less than some `meta` cells


def build(
    tensors: Path, out: Path, *, constants: Path | None = None, structures: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the table to `out`; returns counts. Raises InputError naming the file and row that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = list(read_tensors(tensors))
    counts: dict[str, Any] = {"tensors": len(rows), "constants": 0, "without_structure": 0}
    if constants is not None:
        more, counts["without_structure"] = read_constants(constants, structures, {row["material_id"] for row in rows})
        counts["constants"] = len(more)
        rows += more
    schema = pa.schema(
        [
            ("material_id", pa.string()),
            ("formula", pa.string()),
            ("lattice", pa.list_(pa.float64())),
            ("atomic_numbers", pa.list_(pa.int32())),
            ("frac_coords", pa.list_(pa.float64())),
            *((name, pa.float64()) for name, _, _ in VOIGT),
            ("eps_total", pa.float64()),
            ("eps_electronic", pa.float64()),
            ("source", pa.string()),
        ]
    )
    with atomic_file(out) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    return counts | {"rows": len(rows), "out": str(out)}


def read_tensors(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of source 1; lines that begin with # are comments."""
    from pymatgen.core import Structure

    csv.field_size_limit(CELL_BYTES)
    try:
        stream = path.open(newline="", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path) from error
    with stream:
        reader = csv.DictReader(line for line in stream if not line.startswith("#"))
        for number, row in enumerate(reader, start=1):
            try:
                meta = ast.literal_eval(row["meta"])
                crystal = Crystal.from_structure(Structure.from_str(meta["poscar"], fmt="poscar"))
                total, electronic = (np.array(json.loads(row[name])) for name in ("e_total", "e_electronic"))
                symmetric = ((total + total.T) / 2).reshape(3, 3)
            except (KeyError, TypeError, ValueError, SyntaxError, IndexError) as error:
                raise InputError(
                    f"is no row of the tensor table ({type(error).__name__}: {error})",
                    source=path,
                    record=number,
                    remedy="give the CSV with meta, e_total and e_electronic",
                ) from error
            yield {
                **_structure_columns(str(meta["material_id"]), crystal),
                **{name: float(symmetric[i, j]) for name, i, j in VOIGT},
                "eps_total": float(np.trace(symmetric) / 3),
                "eps_electronic": float(np.trace(electronic) / 3),
                "source": "petousis2017",
            }


def read_constants(path: Path, structures: Sequence[Path], known: set[str]) -> tuple[list[dict[str, Any]], int]:
    """Rows of source 2 that are not in `known`, and how many were left out for want of a structure."""
    from pymatgen.core import Structure

    given = [
        row
        for row in _read(path, ("material_id", "eps_total"))
        if row["material_id"] not in known and row["eps_total"] is not None and math.isfinite(row["eps_total"])
    ]
    wanted = {row["material_id"] for row in given if not row.get("cif")}
    by_id: dict[str, Crystal] = {}
    for table in structures:
        for row in _read(table, STRUCTURE, wanted):
            crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
            by_id.setdefault(row["material_id"], crystal)
    rows, seen, missing = [], set(known), 0
    for row in given:
        name = row["material_id"]
        if name in seen:
            continue
        seen.add(name)
        crystal = by_id.get(name)
        if row.get("cif"):
            with warnings.catch_warnings():  # coordinates such as 0.3333 are rounded to 1/3, which is what is wanted
                warnings.simplefilter("ignore", UserWarning)
                crystal = Crystal.from_structure(Structure.from_str(row["cif"], fmt="cif"))
        if crystal is None:
            missing += 1
            continue
        rows.append(
            {
                **_structure_columns(name, crystal),
                "eps_total": row["eps_total"],
                "eps_electronic": row.get("eps_electronic"),
                "source": path.stem,
            }
        )
    return rows, missing


def _read(path: Path, needed: Sequence[str], ids: set[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet table; with `ids`, the needed columns of those materials only."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        if missing := [name for name in needed if name not in names]:
            raise InputError(f"has no column {', '.join(missing)}", source=path, remedy=f"it has {', '.join(names)}")
        table = parquet.read_table(path, columns=list(needed) if ids is not None else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"is no readable parquet file ({error})", source=path) from error
    if ids is not None:
        table = table.filter(pa.array([name in ids for name in table["material_id"].to_pylist()], pa.bool_()))
    return table.to_pylist()


def _structure_columns(material_id: str, crystal: Crystal) -> dict[str, Any]:
    from pymatgen.core import Composition

    return {
        "material_id": material_id,
        "formula": Composition(crystal.formula).reduced_formula,
        "lattice": crystal.lattice.ravel().tolist(),
        "atomic_numbers": crystal.numbers.tolist(),
        "frac_coords": crystal.frac.ravel().tolist(),
    }
