"""Crystals from pymatgen, ASE, files and tables and back, and what a notebook shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

import crystalforge
from crystalforge.crystal import Crystal

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
COPPER = Atoms("Cu", cell=1.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), pbc=True)


def test_in_and_out_of_pymatgen_ase_and_data_frames() -> None:
    crystals = crystalforge.read([SALT, COPPER, None, Crystal.from_structure(SALT)])
    assert [None if c is None else len(c) for c in crystals] == [8, 1, None, 8]
    assert crystals.formulas == ["NaCl", "Cu", "", "NaCl"]
    structures = crystals.to_structures()
    assert structures[0] == SALT
    atoms = crystals.to_atoms()
    assert len(atoms) == 3
    assert atoms[1].get_volume() == pytest.approx(COPPER.get_volume())
    assert (atoms[1].numbers == COPPER.numbers).all()
    judged = crystals.with_columns(energy=[1.0, 2.0, np.nan, 0.5], note=["a", "b", "c", "d"])
    again = crystalforge.read(judged.to_frame())
    assert again.formulas == crystals.formulas
    assert again["note"].tolist() == ["a", "b", "c", "d"]
    assert [c and c.volume for c in again] == [c and c.volume for c in crystals]
    assert again.sorted_by("energy").formulas == ["NaCl", "NaCl", "Cu", ""]
    assert again.sorted_by("energy", descending=True).formulas == ["Cu", "NaCl", "NaCl", ""]
    assert again[np.array([False, True, False, False])].formulas == ["Cu"]
    assert again[1:3]["note"].tolist() == ["b", "c"]


def test_files_and_texts(tmp_path: Path) -> None:
    SALT.to(str(tmp_path / "salt.cif"))
    (tmp_path / "torn.cif").write_text((tmp_path / "salt.cif").read_text()[:150])
    found = crystalforge.read(tmp_path)
    assert sorted(found["id"].tolist()) == ["salt", "torn"]
    bad = found["id"].tolist().index("torn")
    assert found[bad] is None
    assert found["problem"][bad]
    assert found["problem"][1 - bad] == ""
    assert crystalforge.read(str(tmp_path / "salt.cif")).formulas == ["NaCl"]
    assert crystalforge.read((tmp_path / "salt.cif").read_text()).formulas == ["NaCl"]
    frame = crystalforge.read([SALT]).to_frame().assign(cif=(tmp_path / "salt.cif").read_text(), mine=3)
    assert crystalforge.read(frame[["cif", "mine"]])["mine"].tolist() == [3]
    written = crystalforge.read([SALT, None, COPPER]).to_cifs(tmp_path / "out")
    assert [path.name for path in written] == ["00000-NaCl.cif", "00002-Cu.cif"]
    assert Structure.from_file(written[0]).get_space_group_info()[1] == 225
    with pytest.raises(crystalforge.InputError, match=r"missing\.cif"):
        crystalforge.read(tmp_path / "missing.cif")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "a int is no crystal"),
        ([SALT, 3.5], "record 2: a float is no crystal"),
        ([Atoms("Cu")], "record 1: these atoms are not periodic"),
        ([Structure(Lattice.cubic(3), [{"Na": 0.5}], [[0, 0, 0]])], r"record 1: .*partially occupied"),
        (crystalforge.read([SALT]).to_frame()[["formula"]], "give one called structure or cif"),
    ],
)
def test_what_is_no_crystal_is_named(source: object, message: str) -> None:
    with pytest.raises(crystalforge.InputError, match=message):
        crystalforge.read(source)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(crystalforge.InputError, match="no column 'energy'"):
        crystalforge.read([SALT])["energy"]


def test_a_notebook_shows_pictures_and_a_view_and_nothing_that_a_text_smuggles_in() -> None:
    crystals = crystalforge.read([SALT] * 25).with_columns(note=["<script>alert(1)</script>"] * 25, e=[0.123456] * 25)
    html = crystals._repr_html_()
    assert html.count("<svg") == 20
    assert html.count("<circle") == 20 * 8
    assert "and 5 more" in html
    assert "<script>" not in html
    assert "0.1235" in html
    view = crystals.view(0)._repr_html_()
    assert "CrystalView" in view
    assert "Fm-3m" in view
    assert "<script>" not in view, "it stands escaped in the frame's attribute"
    assert "NaCl" in repr(crystals)
    with pytest.raises(crystalforge.InputError, match="no crystal 0"):
        crystalforge.read([None]).view()
    assert "&ndash;" in crystalforge.read([None])._repr_html_()
