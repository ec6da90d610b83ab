"""Dielectric data of several origins as one table that `train-predictor` reads.

1. Full tensors: Petousis et al., Sci. Data 4, 160134 (2017), the CSV that matminer distributes: structure (a POSCAR in
   the column `meta`), `e_total` and `e_electronic` as 3 x 3 lists.
2. Constants of later Materials Project entries: parquet with material_id, eps_total and, where there is one, a CIF.
   Rows without a CIF find their structure by material_id in further parquet tables.

A material of the first source is left out of the second. A row of the second that is none (a CIF that cannot be read, a
constant that is no number) is left out, counted as `unusable` and listed in `<out>.rejects.jsonl`. Nothing is left out
for its value: bounds are the training's affair (`predictor.bounds`).

Output columns: material_id, formula, lattice (9 floats, row vectors, Å), atomic_numbers, frac_coords, eps_xx .. eps_xy
(total tensor, symmetrised, in the frame of the lattice; null where only the constant is known), eps_total (mean
eigenvalue of the total tensor), eps_electronic, source.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file
from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.cif import parse_cif
from crystalforge.crystal.reading.consistency import check
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.structures import crystal_of, read_poscar
from crystalforge.crystal.reading.text import encoding_of

VOIGT = (("eps_xx", 0, 0), ("eps_yy", 1, 1), ("eps_zz", 2, 2), ("eps_yz", 1, 2), ("eps_xz", 0, 2), ("eps_xy", 0, 1))
STRUCTURE = ("material_id", "lattice", "atomic_numbers", "frac_coords")
CELL_BYTES = 1 << 24  # the csv module's own limit of 128 KiB is less than some `meta` cells


@dataclass(frozen=True)
class Rejected:
    """A row that is left out: where it stands, of which material, why."""

    file: str
    record: int
    id: str
    message: str


def build(
    tensors: Path, out: Path, *, constants: Path | None = None, structures: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the table to `out`; returns counts. Raises InputError naming the file and row that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = list(read_tensors(tensors))
    counts: dict[str, Any] = {"tensors": len(rows), "constants": 0, "without_structure": 0, "unusable": 0}
    rejected: list[Rejected] = []
    if constants is not None:
        known = {row["material_id"] for row in rows}
        more, counts["without_structure"], rejected = read_constants(constants, structures, known)
        counts["constants"], counts["unusable"] = len(more), len(rejected)
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
    rejects = out.with_suffix(".rejects.jsonl")
    if rejected:
        lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejected)
        with atomic_file(rejects) as temporary:
            temporary.write_text(lines)
        print(f"{len(rejected)} rows left out, listed in {rejects}", file=sys.stderr)
    else:
        rejects.unlink(missing_ok=True)
    return counts | {"rows": len(rows), "out": str(out)}


def read_tensors(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of source 1; lines that begin with # are comments."""
    csv.field_size_limit(CELL_BYTES)
    try:
        stream = path.open(newline="", encoding=encoding_of(path))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path) from error
    with stream:
        reader = csv.DictReader(line for line in stream if not line.startswith("#"))
        for number, row in enumerate(reader, start=1):
            try:
                meta = ast.literal_eval(row["meta"])
                name, crystal = str(meta["material_id"]), read_poscar(meta["poscar"])
                check(crystal)
                total, electronic = (
                    np.array(json.loads(row[name]), np.float64) for name in ("e_total", "e_electronic")
                )
                symmetric = ((total + total.T) / 2).reshape(3, 3)
                if not (np.isfinite(symmetric).all() and np.isfinite(electronic).all() and electronic.shape == (3, 3)):
                    raise ValueError("a tensor is not 3 x 3 finite numbers")
            except (KeyError, TypeError, ValueError, SyntaxError, IndexError, AttributeError) as error:
                raise InputError(
                    f"is no row of the tensor table ({type(error).__name__}: {error})",
                    source=path,
                    record=number,
                    remedy="give the CSV with meta, e_total and e_electronic; correct the row or leave it out",
                ) from error
            yield {
                **_structure_columns(name, crystal),
                **{key: float(symmetric[i, j]) for key, i, j in VOIGT},
                "eps_total": float(np.trace(symmetric) / 3),
                "eps_electronic": float(np.trace(electronic) / 3),
                "source": "petousis2017",
            }


def read_constants(
    path: Path, structures: Sequence[Path], known: set[str]
) -> tuple[list[dict[str, Any]], int, list[Rejected]]:
    """Rows of source 2 that are not in `known`; how many were left out for want of a structure; those that are none."""
    rejected: list[Rejected] = []
    given: dict[str, tuple[float, float | None, Any]] = {}
    for number, row in enumerate(_read(path, ("material_id", "eps_total")), start=1):
        name = str(row["material_id"])
        if row["material_id"] is None or name in known or name in given:
            continue
        try:
            total, electronic = _constant(row, "eps_total"), _constant(row, "eps_electronic")
        except Unusable as error:
            rejected.append(Rejected(path.name, number, name, str(error)))
            continue
        if total is None:
            continue
        crystal: Crystal | None = None
        if row.get("cif"):
            try:
                crystal = parse_cif(str(row["cif"]))
            except Unusable as error:
                rejected.append(Rejected(path.name, number, name, str(error)))
                continue
        given[name] = total, electronic, crystal
    wanted = {name for name, (_, _, crystal) in given.items() if crystal is None}
    by_id: dict[str, Crystal] = {}
    for table in structures:
        for number, row in enumerate(_read(table, STRUCTURE, wanted), start=1):
            name = str(row["material_id"])
            try:
                crystal = crystal_of(row)
                check(crystal)
                by_id.setdefault(name, crystal)
            except Unusable as error:
                rejected.append(Rejected(table.name, number, name, str(error)))
    rows = [
        {
            **_structure_columns(name, crystal),
            "eps_total": total,
            "eps_electronic": electronic,
            "source": path.stem,
        }
        for name, (total, electronic, found) in given.items()
        if (crystal := found or by_id.get(name)) is not None
    ]
    return rows, len(given) - len(rows), rejected


def _constant(row: dict[str, Any], column: str) -> float | None:
    """A finite number, None where there is none; Unusable for what is no number."""
    value = row.get(column)
    try:
        number = float("nan" if value is None or value == "" else value)
    except (TypeError, ValueError) as error:
        raise Unusable("malformed-record", f"{column} is no number: {value!r}") from error
    return number if math.isfinite(number) else None


def _read(path: Path, needed: Sequence[str], ids: set[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet table; with `ids`, the needed columns of those materials only."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        if missing := [name for name in needed if name not in names]:
            raise InputError(f"has no column {', '.join(missing)}", source=path, remedy=f"it has {', '.join(names)}")
        table = parquet.read_table(path, columns=list(needed) if ids is not None else None)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"is no readable parquet file ({error})", source=path) from error
    if ids is not None:
        table = table.filter(pa.array([str(name) in ids for name in table["material_id"].to_pylist()], pa.bool_()))
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
