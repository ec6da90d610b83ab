"""Folders of crystal files of several kinds: each file gives its crystals or one reason, whatever its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crystalforge.common.errors import InputError
from crystalforge.data.config import DataConfig
from crystalforge.data.ingest import ingest
from crystalforge.data.sources import Unusable, open_source
from crystalforge.data.sources.files import names_of


def read(folder: Path, kind: str = "files", **settings: str) -> dict[str, object]:
    """{id: formula or reason} of a folder."""
    source = open_source(
        DataConfig.model_validate({"source": {"kind": kind, "path": str(folder), **settings}}), folder / "downloads"
    )
    found: dict[str, object] = {}
    for record in source.records():
        assert record.id not in found, "names tell crystals apart"
        try:
            found[record.id] = record.crystal().formula
        except Unusable as error:
            found[record.id] = error.reason
    return found


@pytest.fixture
def salt(make):
    return make.rock_salt().to_structure()


def test_every_kind_of_file(tmp_path, salt):
    pytest.importorskip("ase", reason="ASE reads extended XYZ; pip install 'crystalforge[potentials]'")
    salt.to(str(tmp_path / "a.cif"))
    (tmp_path / "B.CIF").write_text((tmp_path / "a.cif").read_text())
    for place in ("one/POSCAR", "two/CONTCAR", "c.vasp", "POSCAR_relaxed"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        salt.to(str(tmp_path / place), fmt="poscar")
    (tmp_path / "d.json").write_text(salt.to_json())
    atoms = salt.to_ase_atoms()
    from ase.io import write

    write(tmp_path / "frames.extxyz", [atoms, atoms * (2, 1, 1)], format="extxyz")
    write(tmp_path / "molecule.xyz", atoms, format="xyz")
    write(tmp_path / "e.xsf", atoms, format="xsf")
    (tmp_path / "notes.txt").write_text("not a crystal")
    wanted = dict.fromkeys(("a", "B", "one/POSCAR", "two/CONTCAR", "c", "POSCAR_relaxed", "d", "e"), "Na1 Cl1")
    wanted |= {"frames#1": "Na1 Cl1", "frames#2": "Na2 Cl2", "molecule": "malformed-record"}
    assert read(tmp_path) == wanted
    assert read(tmp_path, "cif-dir") == {"a": "Na1 Cl1", "B": "Na1 Cl1"}
    assert set(read(tmp_path, pattern="**/poscar*")) == {"one/POSCAR", "POSCAR_relaxed"}


def test_bad_files_are_one_reject_each(tmp_path, salt):
    salt.to(str(tmp_path / "good.cif"))
    text = (tmp_path / "good.cif").read_text()
    (tmp_path / "mark.cif").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "wide.cif").write_bytes(text.encode("utf-16"))
    (tmp_path / "old.cif").write_bytes(("# Müller\n" + text).encode("latin-1"))
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "noise.cif").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "page.cif").write_text("<html>404</html>")
    (tmp_path / "vasp4.vasp").write_text("NaCl\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\nDirect\n0 0 0\n.5 .5 .5\n")
    (tmp_path / "short.vasp").write_text("NaCl\n1.0\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 2\nDirect\n0 0 0\n.5 .5 .5\n")
    (tmp_path / "list.json").write_text("[{}, 3]")
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "torn.xyz").write_text("3\nLattice=\n")
    found = read(tmp_path)
    for name in ("good", "mark", "wide", "old"):
        assert found.pop(name) == "Na1 Cl1"
    assert found.pop("vasp4") == "unknown-element"
    for name in ("empty", "noise", "page"):
        assert found.pop(name) == "malformed-cif"
    assert set(found) == {"short", "list#1", "list#2", "torn.json", "torn.xyz"}
    assert set(found.values()) == {"malformed-record"}


def test_names_beyond_utf8_and_names_that_are_equal(tmp_path, salt):
    salt.to(str(tmp_path / "x.cif"))
    (tmp_path / "x.vasp").write_text(salt.to(fmt="poscar"))
    odd = os.fsencode(tmp_path) + b"/Perowskit_\xfc.cif"
    try:
        Path(os.fsdecode(odd)).write_text((tmp_path / "x.cif").read_text())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert set(read(tmp_path)) == {"x.cif", "x.vasp", r"Perowskit_\xfc"}
    config = DataConfig.model_validate({"source": {"kind": "cif-dir", "path": str(tmp_path)}, "deduplicate": False})
    assert ingest(config, tmp_path / "out", processes=1, progress=False)["rows"] == 2


def test_blocks_of_one_name_are_told_apart(tmp_path, salt):
    text = salt.to(fmt="cif")
    (tmp_path / "twice.cif").write_text(text + "\n" + text)
    assert set(read(tmp_path)) == {"twice#NaCl", "twice#NaCl-2"}


def test_a_folder_without_any_file_of_its_kind_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no file matches"):
        read(tmp_path)


def test_names_of_files_given_one_by_one():
    assert names_of([Path("a/x.cif"), Path("b/y.cif")]) == ["x", "y"]
    assert names_of([Path("a/x.cif"), Path("b/x.cif"), Path("b/y.cif")]) == ["a/x.cif", "b/x.cif", "y"]
    assert names_of([Path("x.cif"), Path("x.cif")]) == ["x.cif", "x.cif-2"]
    assert names_of([Path("a/POSCAR"), Path("b/POSCAR")]) == ["a/POSCAR", "b/POSCAR"]
