"""Tables as they come: any encoding, cut short, out of balance, with names of splits that nobody knows."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pymatgen.core import DummySpecies

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.data.config import DataConfig
from crystalforge.data.sources import Record, Unusable, open_source


def read(path: Path, kind: str = "mp20", **split: str) -> list[Record]:
    settings = {"source": {"kind": kind, "path": str(path)}, **({"split": split} if split else {})}
    source = open_source(DataConfig.model_validate(settings), path / "downloads")
    source.count()
    return list(source.records())


def table(rows: list[dict[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@pytest.fixture
def rows(make) -> list[dict[str, str]]:
    cells = [("mp-1", 11, 17, "NaCl"), ("mp-2", 19, 35, "KBr"), ("mp-3", 12, 8, "MgO")]
    return [
        {"material_id": name, "note": "Müller", "pretty_formula": formula}
        | {"cif": make.rock_salt(a, b).to_structure().to(fmt="cif")}
        for name, a, b, formula in cells
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_every_encoding_gives_every_row(tmp_path, rows, encoding):
    (tmp_path / "train.csv").write_bytes(table(rows).encode(encoding))
    found = read(tmp_path)
    assert [record.id for record in found] == ["mp-1", "mp-2", "mp-3"]
    assert [record.crystal().formula for record in found] == ["Na1 Cl1", "K1 Br1", "Mg1 O1"]


def test_a_file_that_ends_inside_a_record_loses_that_record_alone(tmp_path, rows):
    text = table(rows)
    (tmp_path / "train.csv").write_text(text[: text.rindex("MgO") + 400])
    *whole, cut = read(tmp_path)
    assert [record.crystal().formula for record in whole] == ["Na1 Cl1", "K1 Br1"]
    with pytest.raises(Unusable, match="ends inside this record"):
        cut.crystal()


def test_quotes_out_of_balance_are_named_with_their_record(tmp_path, rows):
    text = table(rows)
    first_end = text.index('"\r\nmp-2')
    (tmp_path / "train.csv").write_text(text[:first_end] + text[first_end + 1 :])
    with pytest.raises(InputError, match=r"train\.csv, record 1.*quotes"):
        read(tmp_path)


def test_rows_with_too_few_or_too_many_cells_are_rejects(tmp_path, rows):
    (tmp_path / "train.csv").write_text(table(rows) + "mp-4,only\r\n" + "mp-5,a,b,c,d,e,f\r\n\r\n")
    found = read(tmp_path)
    assert len(found) == 5
    for record in found[3:]:
        with pytest.raises(Unusable, match="cells, the header 4"):
            record.crystal()


def test_a_rows_formula_is_compared_with_its_atoms(tmp_path, rows):
    rows[1]["pretty_formula"], rows[2]["pretty_formula"] = "K2Br", "rock salt"
    (tmp_path / "train.csv").write_text(table(rows))
    right, wrong, unclear = read(tmp_path)
    assert right.crystal().formula == "Na1 Cl1"
    assert unclear.crystal().formula == "Mg1 O1"
    with pytest.raises(Unusable, match="K2Br") as caught:
        wrong.crystal()
    assert caught.value.reason == "contradiction"


def test_structures_as_json_and_as_python_print_them(tmp_path, make):
    plain = make.rock_salt().to_structure()
    charged = plain.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    measured = plain.copy()
    measured.add_site_property("magmom", [0.5, float("nan")])
    half = plain.copy()
    half[0] = {"Na": 0.5, "K": 0.5}
    nulls = plain.as_dict() | {"charge": None, "properties": {"energy": float("nan"), "note": None}}
    cells = [
        repr(plain.as_dict()),
        json.dumps(plain.as_dict()),
        plain.to_json(),
        json.dumps(nulls),
        repr(nulls),
        json.dumps(measured.as_dict()),
        repr(measured.as_dict()),
        json.dumps(charged.as_dict()),
        repr(plain.as_dict()).replace("[0.0, 0.0, 0.0]", "array([0.0, 0.0, np.float64(0.0)])", 1),
    ]
    hole = plain.copy()
    hole[0] = DummySpecies("X")
    bad = [json.dumps(half.as_dict()), json.dumps(hole.as_dict()), "{'a': 1}", "{", "{[}"]
    (tmp_path / "train.csv").write_text(table([{"cif": cell} for cell in cells + bad]))
    found = read(tmp_path, "alex20")
    for record in found[: len(cells)]:
        assert record.crystal().formula == "Na1 Cl1"
    reasons = []
    for record in found[len(cells) :]:
        with pytest.raises(Unusable) as caught:
            record.crystal()
        reasons.append(caught.value.reason)
    assert reasons == ["partial-occupancy", "unknown-element", *["malformed-record"] * 3]


def parquet_with(path: Path, make, splits: list[object], **columns: list[object]) -> Path:
    salt = make.rock_salt()
    size = len(splits)
    parquet.write_table(
        pa.table(
            {
                "lattice": [salt.lattice.ravel().tolist()] * size,
                "atomic_numbers": [salt.numbers.tolist()] * size,
                "frac_coords": [salt.frac.ravel().tolist()] * size,
                "split": splits,
                **columns,
            }
        ),
        path,
    )
    return path


def test_names_of_splits_in_other_words(tmp_path, make):
    file = parquet_with(tmp_path / "x.parquet", make, ["Training", "VALID", " test ", "testing", None, "", "reference"])
    assert [record.split for record in read(file, "parquet")] == [
        "train", "val", "test", "test", None, None, "reference",
    ]  # fmt: skip


@pytest.mark.parametrize("names", [["train", "dev"], ["fold1", "fold2"], [0, 1], [0.0, 1.0]])
def test_names_of_splits_that_nobody_knows_are_never_ignored(tmp_path, make, names):
    file = parquet_with(tmp_path / "x.parquet", make, names)
    with pytest.raises(InputError, match=rf"'{names[1]}' \(1 rows\)"):
        read(file, "parquet")
    assert [record.split for record in read(file, "parquet", mode="formula")][1] is None


def test_a_damaged_parquet_is_one_message(tmp_path, make):
    file = parquet_with(tmp_path / "x.parquet", make, ["train"] * 3)
    content = bytearray(file.read_bytes())
    content[4:60] = b"\xff" * 56
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet"):
        read(file, "parquet")


def test_a_formula_column_of_parquet_counts_too(tmp_path, make):
    file = parquet_with(tmp_path / "x.parquet", make, ["train", "train"], formula=["NaCl", "NaCl3"])
    right, wrong = read(file, "parquet")
    assert len(right.crystal()) == 2
    with pytest.raises(Unusable, match="NaCl3"):
        wrong.crystal()


def test_overlapping_atoms_are_refused_from_tables_too(tmp_path):
    from crystalforge.data.sources.base import Record

    crystal = Crystal.of(np.eye(3) * 4, [55, 17], [[0, 0, 0], [0.01, 0, 0]])
    with pytest.raises(Unusable) as caught:
        Record("x", 1, "x", crystal).crystal()
    assert caught.value.reason == "overlap"


@pytest.mark.parametrize(
    ("lattice", "coords", "reason"),
    [
        ([4.1, 4.1, 4.1, 90.0, 90.0, 90.0], [0.5, 0.5, 0.5], "degenerate-cell"),  # degrees
        ([4.1, 5.2, 4.1, *[np.pi / 2] * 3], [0.5, 0.5, 0.5], "contradiction"),  # not cubic
        ([4.1, 4.1, 4.1, *[np.pi / 2] * 3], [0.5, 0.4, 0.5], "contradiction"),  # not on position b
        ([4.1, 4.1, 4.1, *[np.pi / 2] * 3], [0.5, 0.5, 0.5], None),
    ],
)
def test_ready_tokens_are_checked_against_their_group(tmp_path, lattice, coords, reason):
    arrays = [
        np.array([221]), np.array([lattice]), np.array([[[0, 0, 0], coords]]), np.array([[55, 17]]), np.array([[1, 2]]),
    ]  # fmt: skip
    database = lmdb.open(str(tmp_path / "train.lmdb"), subdir=False, map_size=1 << 20)
    with database, database.begin(write=True) as put:
        for number, array in enumerate(arrays):
            put.put(str(number).encode(), pickle.dumps(array))
    (record,) = read(tmp_path, "alex20")
    assert getattr(record.payload, "reason", None) == reason
