"""Each layout gives its records; what is missing is named; nothing in a file is ever run."""

from __future__ import annotations

import csv
import hashlib
import http.server
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import tokenize
from crystalforge.data.config import DataConfig
from crystalforge.data.sources import Unusable, open_source


def records(tmp_path, **source):
    opened = open_source(DataConfig.model_validate({"source": source}), tmp_path / "downloads")
    found = list(opened.records())
    return opened, found


def write_csv(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def cif_text(crystal: Crystal) -> str:
    return crystal.to_structure().to(fmt="cif")


def test_parquet(tmp_path, make):
    salt = make.rock_salt()
    table = {
        "material_id": ["a", "b", "c", "d"],
        "lattice": [salt.lattice.ravel().tolist()] * 3 + [[1.0]],
        "atomic_numbers": [[11, 17], [11, 0], [11, 17], [1]],
        "frac_coords": [salt.frac.ravel().tolist()] * 3 + [[0.0, 0.0, 0.0]],
        "e_above_hull": [0.25, None, float("nan"), 0.0],
        "split": ["train", "valid", "reference", None],
    }
    parquet.write_table(pa.table(table), tmp_path / "x.parquet")
    source, (a, b, c, d) = records(tmp_path, kind="parquet", path=str(tmp_path / "x.parquet"))
    assert source.count() == 4
    assert (a.id, a.split, dict(a.properties), a.number) == ("a", "train", {"e_above_hull": 0.25}, 1)
    np.testing.assert_array_equal(a.crystal().lattice, salt.lattice)
    assert (b.split, c.split, d.split) == ("val", "reference", None)
    assert not c.properties
    assert isinstance(b.payload, Unusable)
    assert (b.payload.reason, b.payload.value) == ("unknown-element", "0")
    with pytest.raises(Unusable, match="9 lattice values"):
        d.crystal()


def test_parquet_without_what_is_needed(tmp_path):
    parquet.write_table(pa.table({"lattice": [[1.0] * 9]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="'atomic_numbers', 'frac_coords' is missing; there are lattice"):
        records(tmp_path, kind="parquet", path=str(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_text("nonsense")
    with pytest.raises(InputError, match="no parquet file"):
        records(tmp_path, kind="parquet", path=str(tmp_path / "y.parquet"))
    with pytest.raises(InputError, match="no such file"):
        records(tmp_path, kind="parquet", path=str(tmp_path / "z.parquet"))


def test_mp20(tmp_path, make):
    row = {
        "material_id": "mp-1",
        "formation_energy_per_atom": -2.1,
        "e_above_hull": "",
        "cif": cif_text(make.rock_salt()),
    }
    write_csv(tmp_path / "train.csv", [row, row | {"material_id": "mp-2", "e_above_hull": "low"}])
    write_csv(tmp_path / "test.csv", [row | {"material_id": "mp-3", "cif": ""}])
    source, (a, b, c) = records(tmp_path, kind="mp20", path=str(tmp_path))
    assert source.count() == 3
    assert (a.id, a.split, dict(a.properties)) == ("mp-1", "train", {"formation_energy_per_atom": -2.1})
    assert a.crystal().formula == "Na1 Cl1"
    assert isinstance(b.payload, Unusable)
    assert b.payload.value == "low"
    assert (c.split, c.file, c.number) == ("test", "test.csv", 1)
    with pytest.raises(Unusable, match="empty"):
        c.crystal()


def test_mp20_without_its_columns(tmp_path):
    write_csv(tmp_path / "train.csv", [{"cif": "data_x"}])
    with pytest.raises(InputError, match="'material_id' is missing"):
        records(tmp_path, kind="mp20", path=str(tmp_path))
    with pytest.raises(InputError, match=r"none of train\.csv"):
        records(tmp_path, kind="mp20", path=str(tmp_path / "elsewhere"))


def test_alex20_csv_with_printed_structures(tmp_path, make):
    structure = make.rock_salt().to_structure()
    write_csv(
        tmp_path / "val.csv",
        [{"cif": cif_text(make.rock_salt())}, {"cif": str(structure.as_dict())}, {"cif": "{'a': __import__('os')}"}],
    )
    _, (a, b, c) = records(tmp_path, kind="alex20", path=str(tmp_path))
    assert a.crystal().formula == b.crystal().formula == "Na1 Cl1"
    assert (a.id, a.split) == ("val-1", "val")
    with pytest.raises(Unusable, match="no pymatgen structure"):
        c.crystal()


def write_lmdb(file: Path, values: list[bytes]) -> None:
    lmdb = pytest.importorskip("lmdb", reason="crystalforge[sources] is not installed")
    with lmdb.open(str(file), subdir=False, map_size=1 << 24) as environment, environment.begin(write=True) as write:
        for number, value in enumerate(values):
            write.put(str(number).encode(), value)


def arrays_of(tokens: Tokens) -> list[np.ndarray]:
    return [tokens.spacegroup, tokens.lattice, tokens.coords, tokens.element, tokens.wyckoff]


def test_alex20_lmdb(tmp_path, make):
    tokens = Tokens.concatenate([tokenize(make.rock_salt()), tokenize(make.rock_salt(12, 8, 4.2))])
    arrays = arrays_of(tokens)
    arrays[4] = arrays[4].copy()
    arrays[4][1, 0] = 27  # a letter that space group 225 does not have
    write_lmdb(tmp_path / "train.lmdb", [pickle.dumps(array) for array in arrays])
    source, (a, b) = records(tmp_path, kind="alex20", path=str(tmp_path))
    assert source.count() == 2
    assert (a.id, a.split) == ("train-1", "train")
    assert isinstance(a.payload, Tokens)
    np.testing.assert_array_equal(a.payload.wyckoff, tokens.wyckoff[:1])
    np.testing.assert_allclose(a.payload.lattice, tokens.lattice[:1])
    assert isinstance(b.payload, Unusable)


class Trap:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_in_an_lmdb_is_never_run(tmp_path, make):
    values = [pickle.dumps(array) for array in arrays_of(tokenize(make.rock_salt()))]
    values[2] = pickle.dumps(Trap(tmp_path / "sprung"))
    write_lmdb(tmp_path / "train.lmdb", values)
    with pytest.raises(InputError, match="refused"):
        records(tmp_path, kind="alex20", path=str(tmp_path))
    assert not (tmp_path / "sprung").exists()


def test_an_lmdb_of_something_else(tmp_path):
    write_lmdb(tmp_path / "train.lmdb", [pickle.dumps(np.zeros(3))])
    with pytest.raises(InputError, match=r"key 1 \(lattice\) is missing"):
        records(tmp_path, kind="alex20", path=str(tmp_path))


def test_cif_directory(tmp_path, make):
    source, found = records(tmp_path, kind="cif-dir", path=str(make.cifs))
    assert source.count() == len(list(make.cifs.glob("*.cif")))
    names = [record.id for record in found]
    assert names == sorted(names)
    assert {"two_blocks#iron", "two_blocks#polonium", "rock_salt_p1"} <= set(names)
    with pytest.raises(InputError, match="no file matches"):
        records(tmp_path, kind="cif-dir", path=str(make.cifs), pattern="*.mcif")
    with pytest.raises(InputError, match="no such directory"):
        records(tmp_path, kind="cif-dir", path=str(tmp_path / "none"))


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(root), **kwargs)

        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_download_with_checksum(tmp_path, make, server):
    root, url = server
    file = write_csv(root / "train.csv", [{"material_id": "mp-1", "cif": cif_text(make.rock_salt())}])
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="expected 00"):
        records(tmp_path, kind="mp20", path=url, checksums={"train.csv": "00"})
    assert not list((tmp_path / "downloads").rglob("*.*")), "a refused download leaves nothing behind"
    _, found = records(tmp_path, kind="mp20", path=url, checksums={"train.csv": right})
    assert [record.id for record in found] == ["mp-1"]
    file.unlink()
    _, again = records(tmp_path, kind="mp20", path=url, checksums={"train.csv": right})
    assert len(again) == 1, "a file that is there is not downloaded again"
    with pytest.raises(InputError, match=r"none of train\.csv"):
        records(tmp_path, kind="mp20", path=url + "/elsewhere")


def test_a_server_that_is_away(tmp_path):
    with pytest.raises(InputError, match="cannot be downloaded"):
        records(tmp_path, kind="parquet", path="http://127.0.0.1:9/x.parquet")
