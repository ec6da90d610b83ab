"""From files to a store: complete, repeatable, resumable, and honest about what it left out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals
from crystalforge.data import ingest as module
from crystalforge.data.config import DataConfig
from crystalforge.data.ingest import ingest, tokenize_shards
from crystalforge.data.shards import Limits, make_shard, read_shard
from crystalforge.data.sources import Record, Unusable
from crystalforge.data.sources.tables import embedded
from crystalforge.data.store import TokenStore

SOURCE = Path(module.__file__).parents[2]


def config_of(path: Path, kind: str = "parquet", **settings) -> DataConfig:
    return DataConfig.model_validate({"source": {"kind": kind, "path": str(path)}, "shard_size": 16, **settings})


def write_parquet(file: Path, crystals: list[Crystal], **columns) -> Path:
    table = {
        "lattice": [crystal.lattice.ravel().tolist() for crystal in crystals],
        "atomic_numbers": [crystal.numbers.tolist() for crystal in crystals],
        "frac_coords": [crystal.frac.ravel().tolist() for crystal in crystals],
        **columns,
    }
    parquet.write_table(pa.table(table), file)
    return file


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    """Forty of the embedded data set's."""
    return [record.crystal() for record in embedded().records() if record.split != "reference"][::130][:40]


def rejects(out: Path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())}


def test_cif_directory_with_bad_files(tmp_path, make):
    manifest = ingest(config_of(make.cifs, "cif-dir"), tmp_path, processes=1, progress=False)
    store = TokenStore.open(tmp_path / "store")
    assert sorted(store.ids()) == ["fluorite_symmetric", "rock_salt_p1", "two_blocks#iron", "two_blocks#polonium"]
    bad = rejects(tmp_path)
    assert {name: row["reason"] for name, row in bad.items()} == {
        "malformed": "malformed-cif",
        "partial_occupancy": "partial-occupancy",
        "unknown_element": "unknown-element",
        "many_sites": "too-many-sites",
    }
    assert all(row["file"].endswith(".cif") and row["record"] == 1 and row["remedy"] for row in bad.values())
    assert "21" in bad["many_sites"]["message"]
    assert "20" in bad["many_sites"]["message"]
    assert manifest["records"] == 8
    assert sum(manifest["rejects"].values()) == 4
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest == store.manifest
    assert sorted(store.column("spacegroup").tolist()) == [221, 225, 225, 229]


def test_structures_survive(tmp_path, crystals):
    file = write_parquet(tmp_path / "x.parquet", crystals, id=[f"c{i}" for i in range(len(crystals))])
    ingest(config_of(file), tmp_path / "out", processes=1, progress=False)
    store = TokenStore.open(tmp_path / "out" / "store")
    by_id = dict(zip(store.ids(), to_crystals(store.tokens(slice(None)), primitive=True), strict=True))
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1, scale=False)
    for name in list(by_id)[::8]:
        assert by_id[name] is not None
        assert matcher.fit(by_id[name].to_structure(), crystals[int(name[1:])].to_structure())


def test_processes_cuts_and_repetition_do_not_matter(tmp_path, crystals):
    file = write_parquet(tmp_path / "x.parquet", crystals)
    one = ingest(config_of(file), tmp_path / "one", processes=1, progress=False)
    two = ingest(config_of(file), tmp_path / "two", processes=2, progress=False)
    cut = ingest(config_of(file, shard_size=7), tmp_path / "cut", processes=1, progress=False)
    assert one == two
    assert one["data_hash"] == cut["data_hash"]
    assert ingest(config_of(file), tmp_path / "one", processes=1, progress=False) == one


def test_unchanged_shards_are_not_redone(tmp_path, crystals, monkeypatch):
    made: list[int] = []
    real = module.make_shard
    monkeypatch.setattr(
        module, "make_shard", lambda records, *rest, **more: (made.append(len(records)), real(records, *rest, **more))
    )
    file = write_parquet(tmp_path / "x.parquet", crystals[:36])
    ingest(config_of(file), tmp_path / "out", processes=1, progress=False)
    assert made == [16, 16, 4]
    made.clear()
    write_parquet(file, crystals)  # four more records: two whole shards are as before
    manifest = ingest(config_of(file), tmp_path / "out", processes=1, progress=False)
    assert made == [8]
    assert manifest["rows"] == 40
    made.clear()
    for shard in (tmp_path / "out" / "shards").glob("*.npz"):
        shard.write_bytes(shard.read_bytes()[:-40])  # cut short, as by a full disk
    assert ingest(config_of(file), tmp_path / "out", processes=1, progress=False) == manifest
    assert made == [16, 16, 8]
    made.clear()
    ingest(config_of(file, symprec=0.02), tmp_path / "out", processes=1, progress=False)
    assert made == [16, 16, 8], "another tolerance is other work"


def test_several_machines_share_the_work(tmp_path, crystals):
    file = write_parquet(tmp_path / "x.parquet", crystals)
    alone = ingest(config_of(file), tmp_path / "alone", processes=1, progress=False)
    shares = [
        tokenize_shards(config_of(file), tmp_path / "shared", part=part, parts=2, processes=1, progress=False)
        for part in (0, 1)
    ]
    assert shares == [2, 1]
    before = {shard: shard.stat().st_mtime_ns for shard in (tmp_path / "shared" / "shards").iterdir()}
    assert ingest(config_of(file), tmp_path / "shared", processes=1, progress=False) == alone
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before
    with pytest.raises(InputError, match="part 2 of 2"):
        tokenize_shards(config_of(file), tmp_path, part=2, parts=2)


def test_killed_and_started_again(tmp_path, crystals):
    file = write_parquet(tmp_path / "x.parquet", crystals)
    config = config_of(file, shard_size=2)
    expected = ingest(config, tmp_path / "undisturbed", processes=1, progress=False)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from crystalforge.data import ingest as module\n"
        "from crystalforge.data.config import DataConfig\n"
        "real = module.make_shard\n"
        "module.make_shard = lambda *a, **k: (time.sleep(0.05), real(*a, **k))\n"
        "module.ingest(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), processes=1)\n"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", script, config.model_dump_json(), str(out)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(out.glob("shards/*.npz"))) < 5:
        assert process.poll() is None, "it finished before it could be killed"
        assert time.monotonic() < deadline, "it never started"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "store").exists()
    done = {shard: shard.stat().st_mtime_ns for shard in out.glob("shards/*.npz")}
    assert len(done) < 20
    assert ingest(config, out, processes=1, progress=False) == expected
    assert {shard: shard.stat().st_mtime_ns for shard in done} == done


def test_isolation_changes_nothing(tmp_path, crystals, make):
    """After a crash the records of a shard are tokenised by workers that are replaced when they die."""
    bad = Unusable("malformed-record", "made for this test")
    payloads = [*crystals[:3], bad, (make.cifs / "many_sites.cif").read_text()]
    records = [Record("f", n, f"r{n}", payload) for n, payload in enumerate(payloads, start=1)]
    limits = Limits.of(DataConfig())
    make_shard(records, limits, tmp_path / "plain.npz")
    make_shard(records, limits, tmp_path / "isolated.npz", isolated=True)
    (plain, plain_bad), (isolated, isolated_bad) = (read_shard(tmp_path / f"{n}.npz") for n in ("plain", "isolated"))
    assert plain_bad == isolated_bad
    assert [reject.record for reject in plain_bad] == [4, 5]
    for field in fields(plain):
        np.testing.assert_array_equal(getattr(plain, field.name), getattr(isolated, field.name))


def test_given_splits_are_kept_and_leak_nothing(tmp_path, crystals):
    doubled = [*crystals, *crystals]
    split = ["train"] * 40 + ["test"] * 10 + ["val"] * 10 + [None] * 20
    file = write_parquet(tmp_path / "x.parquet", doubled, split=split)
    manifest = ingest(config_of(file), tmp_path / "out", processes=1, progress=False)
    assert manifest["counts"] == {"train": 20, "val": 10, "test": 10, "reference": 0}
    assert manifest["duplicates"] == 20
    assert manifest["without_split"] == 20
    listed = rejects(tmp_path / "out")
    assert len(listed) == 20
    assert {row["reason"] for row in listed.values()} == {"duplicate"}
    # Without de-duplication the test set still keeps train clean of it.
    loose = ingest(config_of(file, deduplicate=False), tmp_path / "loose", processes=1, progress=False)
    assert loose["counts"] == manifest["counts"]
    new = ingest(config_of(file, split={"mode": "formula"}), tmp_path / "new", processes=1, progress=False)
    assert new["rows"] == 40


def test_new_splits_leak_nothing(tmp_path, crystals):
    repeated = [Crystal.of(crystal.lattice * scale, crystal.numbers, crystal.frac + 0.1)
                for scale in (1.0, 1.005, 1.01) for crystal in crystals]  # fmt: skip
    file = write_parquet(tmp_path / "x.parquet", repeated)
    manifest = ingest(config_of(file, deduplicate=False), tmp_path / "out", processes=1, progress=False)
    assert manifest["rows"] == 120
    store = TokenStore.open(tmp_path / "out" / "store")
    split = np.asarray(store.column("split")).reshape(3, 40)
    assert (split == split[0]).all()
    assert len(set(split[0].tolist())) == 3


def test_limits(tmp_path, crystals):
    above = np.linspace(0, 0.5, 40)
    file = write_parquet(tmp_path / "x.parquet", crystals, e_above_hull=above)
    manifest = ingest(
        config_of(file, max_e_above_hull=0.3, max_atoms=8, max_atomic_number=50, limit=39), tmp_path / "out",
        processes=1, progress=False,
    )  # fmt: skip
    expected = [
        index
        for index, crystal in enumerate(crystals[:39])
        if above[index] <= 0.3 and len(crystal) <= 8 and crystal.numbers.max() <= 50
    ]
    store = TokenStore.open(tmp_path / "out" / "store")
    assert store.ids() == [f"x-{index + 1}" for index in expected]
    assert set(manifest["rejects"]) == {"above-hull", "too-many-atoms", "heavy-element"}
    np.testing.assert_allclose(store.column("e_above_hull"), above[expected], atol=1e-7)
    assert np.isnan(store.column("energy_per_atom")).all()


def test_nothing_usable(tmp_path, make):
    for name in ("malformed", "partial_occupancy"):
        (tmp_path / "cif").mkdir(exist_ok=True)
        shutil.copy(make.cifs / f"{name}.cif", tmp_path / "cif")
    with pytest.raises(InputError, match="all 2 records are rejected") as caught:
        ingest(config_of(tmp_path / "cif", "cif-dir"), tmp_path / "out", processes=1, progress=False)
    assert str(tmp_path / "cif") in str(caught.value)
    assert len(rejects(tmp_path / "out")) == 2
    empty = write_parquet(tmp_path / "x.parquet", [])
    with pytest.raises(InputError, match="no records"):
        ingest(config_of(empty), tmp_path / "empty", processes=1, progress=False)


def test_splits_asked_for_and_not_there(tmp_path, crystals):
    file = write_parquet(tmp_path / "x.parquet", crystals[:3])
    with pytest.raises(InputError, match="gives no splits"):
        ingest(config_of(file, split={"mode": "given"}), tmp_path / "out", processes=1, progress=False)


def test_rejects_of_the_reading_stage_do_not_break_the_workers(tmp_path, crystals, monkeypatch):
    """An `Unusable` travels to the workers with its record; nothing is done twice for it."""
    energies = [None if row % 3 else "N/A" for row in range(len(crystals))]
    source = write_parquet(tmp_path / "x.parquet", crystals, e_above_hull=energies)
    monkeypatch.setattr(module, "_make_isolated", None)  # what a broken pool would call
    manifest = ingest(config_of(source), tmp_path / "out", processes=2, progress=False)
    assert manifest["rejects"] == {"malformed-record": 14}
    assert manifest["rows"] + manifest["duplicates"] == len(crystals) - 14
    reasons = {row["message"] for row in rejects(tmp_path / "out").values() if row["reason"] == "malformed-record"}
    assert reasons == {"e_above_hull is no number"}


def test_leaks_across_given_splits_are_counted_listed_and_told(tmp_path, capsys):
    lattice = np.eye(3) * 4.12
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    copy = Crystal.of(lattice, [55, 17], frac + [[0, 0, 0], [0.01, 0.004, 0.02]])
    source = write_parquet(
        tmp_path / "x.parquet",
        [Crystal.of(lattice, [55, 17], frac), copy],
        id=["plain", "bent"],
        split=["test", "train"],
    )
    manifest = ingest(config_of(source), tmp_path / "out", processes=1, progress=False)
    assert manifest["rows"] == 2
    assert manifest["leaks"] == {"train in test": 1}
    (line,) = map(json.loads, (tmp_path / "out" / "leaks.jsonl").read_text().splitlines())
    assert line == {"id": "bent", "split": "train", "matches": "plain", "in": "test"}
    assert "1 of train match one of test" in capsys.readouterr().err
    again = ingest(config_of(source, split={"mode": "formula"}), tmp_path / "out", processes=1, progress=False)
    assert again["leaks"] == {}
    assert not (tmp_path / "out" / "leaks.jsonl").exists()
