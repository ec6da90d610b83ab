"""Which version of its data a stage is of: one result is never handed out for other data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from crystalforge.config import Config, from_sections
from crystalforge.integrations.dvc import data_version, source_version, version_of
from crystalforge.platform.run import _asked
from crystalforge.stages.base import StaleOutputs
from crystalforge.stages.ingest import ingest


def crystal(place: Path, name: str, a: float, metal: str = "Na") -> None:
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [metal, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    salt.to(str(place / f"{name}.cif"))


def config(path: Path) -> Config:
    split = {"train": 1.0, "val": 0.0, "test": 0.0}
    data = {"source": {"kind": "cif-dir", "path": str(path)}, "split": split}
    return from_sections(data=data, tracking={"enabled": False})


def dvc(place: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_below_a_tracked_one_has_a_version_of_its_own_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    raw = tmp_path / "data" / "raw"
    (raw / "part").mkdir(parents=True)
    (raw / "other").mkdir()
    crystal(raw / "part", "a", 5.6)
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    dvc(tmp_path, "add", "--quiet", "data")
    whole, part, other = (config(tmp_path / "data"), config(raw / "part"), config(raw / "other"))
    versions = [source_version(c.data) for c in (whole, part, other)]
    assert versions[0] == data_version(str(tmp_path / "data")), "DVC's own hash, which we compute as it does"
    assert versions[0].endswith(".dir")
    assert versions[1].startswith("sha256-")
    assert versions[2] == "", "nothing is read there"
    first = ingest(part, tmp_path / "out")
    assert ingest(part, tmp_path / "out") == first, "done before"

    crystal(raw / "part", "b", 6.3, "K")
    assert source_version(part.data) != versions[1]
    assert source_version(whole.data).startswith("sha256-"), "DVC's hash is of what was there before"
    with pytest.raises(StaleOutputs):
        ingest(part, tmp_path / "out")
    again = ingest(part, tmp_path / "again")
    assert again["content"] != first["content"]
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["counts"]["train"] == 2
    assert _asked(part) != _asked(other)

    dvc(tmp_path, "add", "--quiet", "data")
    assert source_version(whole.data) == data_version(str(tmp_path / "data")) != versions[0]


def test_data_that_nobody_tracks_have_a_version_too(tmp_path: Path) -> None:
    crystal(tmp_path, "a", 5.6)
    before = source_version(config(tmp_path).data)
    crystal(tmp_path, "a", 5.7)
    changed = source_version(config(tmp_path).data)
    (tmp_path / "a.cif").rename(tmp_path / "b.cif")
    assert len({"", before, changed, source_version(config(tmp_path).data)}) == 4
    (tmp_path / "notes.txt").write_text("not read")
    (tmp_path / "b.cif").rename(tmp_path / "a.cif")
    assert source_version(config(tmp_path).data) == changed, "files that are not read do not count"


def test_splits_single_files_and_what_is_elsewhere(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(f"cif\n{name}\n")
    folder = from_sections(data={"source": {"kind": "mp20", "path": str(tmp_path)}})
    one = from_sections(data={"source": {"kind": "mp20", "path": str(tmp_path / "train.csv")}})
    before = [source_version(c.data) for c in (folder, one)]
    (tmp_path / "val.csv").write_text("cif\nother\n")
    after = [source_version(c.data) for c in (folder, one)]
    assert before[0] != after[0]
    assert before[1] == after[1]
    away = from_sections(data={"source": {"kind": "mp20", "path": "https://example.org/mp20"}})
    assert source_version(away.data) == source_version(Config().data) == ""
    assert version_of(str(tmp_path / "absent.csv"), []) == ""
