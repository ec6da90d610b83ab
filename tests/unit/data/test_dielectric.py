"""The dielectric table: tensors and constants of two sources in one, each material once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.data.dielectric import build

SALT = Crystal.of(2.8 * (np.ones((3, 3)) - np.eye(3)), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
TOTAL = [[6.0, 0.2, 0.0], [0.0, 5.0, 0.4], [0.0, 0.0, 4.0]]


def write_tensors(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        stream.write("# a reference\n")
        writer = csv.DictWriter(stream, ["meta", "e_electronic", "e_total"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    poscar = SALT.to_structure().to(fmt="poscar")
    tensor = {"e_total": json.dumps(TOTAL), "e_electronic": json.dumps((2 * np.eye(3)).tolist())}
    write_tensors(tmp_path / "tensors.csv", [{"meta": repr({"material_id": "mp-1", "poscar": poscar}), **tensor}])
    cif = SALT.to_structure().to(fmt="cif")
    constants = {
        "material_id": ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"],
        "eps_total": [5.1, 7.0, 8.0, 9.0, None],
        "cif": [cif, cif, None, None, cif],
    }
    pq.write_table(pa.table(constants), tmp_path / "constants.parquet")
    known = {
        "material_id": ["mp-3", "mp-9"],
        "lattice": [SALT.lattice.ravel().tolist()] * 2,
        "atomic_numbers": [[11, 17]] * 2,
        "frac_coords": [SALT.frac.ravel().tolist()] * 2,
    }
    pq.write_table(pa.table(known), tmp_path / "structures.parquet")
    return tmp_path


def test_every_material_comes_once_with_its_structure(sources: Path) -> None:
    counts = build(
        sources / "tensors.csv",
        sources / "out.parquet",
        constants=sources / "constants.parquet",
        structures=[sources / "structures.parquet"],
    )
    assert (counts["tensors"], counts["constants"], counts["without_structure"], counts["rows"]) == (1, 2, 1, 3)
    rows = {row["material_id"]: row for row in pq.read_table(sources / "out.parquet").to_pylist()}
    assert list(rows) == ["mp-1", "mp-2", "mp-3"]
    first = rows["mp-1"]
    assert [first[f"eps_{name}"] for name in ("xx", "yy", "zz", "yz", "xz", "xy")] == [6.0, 5.0, 4.0, 0.2, 0.0, 0.1]
    assert (first["eps_total"], first["eps_electronic"], first["formula"]) == (5.0, 2.0, "NaCl")
    assert rows["mp-2"]["eps_xx"] is None
    assert [rows[name]["eps_total"] for name in ("mp-2", "mp-3")] == [7.0, 8.0]
    for row in rows.values():
        crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
        assert crystal.volume == pytest.approx(SALT.volume, rel=1e-6)


def test_bad_rows_are_named(sources: Path) -> None:
    write_tensors(sources / "bad.csv", [{"meta": "no dictionary", "e_electronic": "[]", "e_total": "[]"}])
    with pytest.raises(InputError, match=r"bad\.csv, record 1: is no row of the tensor table"):
        build(sources / "bad.csv", sources / "out.parquet")
    with pytest.raises(InputError, match="has no column material_id"):
        build(
            sources / "tensors.csv",
            sources / "out.parquet",
            constants=sources / "constants.parquet",
            structures=[_other(sources)],
        )


def _other(folder: Path) -> Path:
    pq.write_table(pa.table({"lattice": [[1.0] * 9]}), folder / "other.parquet")
    return folder / "other.parquet"


@pytest.mark.parametrize("kind", ["words", "integers"])
def test_columns_of_other_types_are_read(sources: Path, kind: str) -> None:
    cif = SALT.to_structure().to(fmt="cif")
    ids, values = (["7", "8"], ["5.0", "6"]) if kind == "words" else ([7, 8], [5, 6])
    pq.write_table(pa.table({"material_id": ids, "eps_total": values, "cif": [cif, cif]}), sources / "c.parquet")
    counts = build(sources / "tensors.csv", sources / "out.parquet", constants=sources / "c.parquet")
    assert (counts["constants"], counts["unusable"]) == (2, 0)
    rows = pq.read_table(sources / "out.parquet").to_pylist()
    assert [(row["material_id"], row["eps_total"]) for row in rows[1:]] == [("7", 5.0), ("8", 6.0)]


def test_a_row_that_is_none_is_left_out_counted_and_listed(sources: Path) -> None:
    cif = SALT.to_structure().to(fmt="cif")
    columns = {
        "material_id": ["a", "b", "c", "d"],
        "eps_total": ["5.0", "6.0", "high", "7.0"],
        "cif": ["data_x\nnothing", cif, cif, cif.replace("Na4", "Na3").replace("Na1 Cl1", "Na2 Cl1")],
    }
    pq.write_table(pa.table(columns), sources / "c.parquet")
    counts = build(sources / "tensors.csv", sources / "out.parquet", constants=sources / "c.parquet")
    assert (counts["constants"], counts["unusable"]) == (1, 3)
    listed = [json.loads(line) for line in (sources / "out.rejects.jsonl").read_text().splitlines()]
    assert [(line["id"], line["record"], line["file"]) for line in listed] == [
        ("a", 1, "c.parquet"),
        ("c", 3, "c.parquet"),
        ("d", 4, "c.parquet"),
    ]
