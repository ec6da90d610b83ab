"""The short cut reads what pymatgen reads, and leaves to pymatgen what it does not understand."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from crystalforge.data import cif
from crystalforge.data.cif import CifError, parse_cif, split_blocks

SAME = 1e-9  # Å and fractional: the same formulas in another order


def read(make, name: str) -> str:
    return (make.cifs / name).read_text()


@pytest.mark.parametrize("parameters", [(3, 4, 5, 90, 90, 90), (4.1, 5.2, 6.3, 71, 95, 112), (3, 3, 5, 90, 90, 120)])
def test_the_short_cut_agrees_with_pymatgen(parameters):
    frac = [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0.61234567, 0.1, 0.999]]
    structure = Structure(Lattice.from_parameters(*parameters), ["Mg", "O", "Fe"], frac)
    text = str(CifWriter(structure))
    ours, theirs = cif._expanded(text), cif._general(text)
    assert ours is not None
    np.testing.assert_allclose(ours.lattice, theirs.lattice, atol=SAME)
    np.testing.assert_allclose(ours.frac, theirs.frac, atol=SAME)
    assert ours.numbers.tolist() == theirs.numbers.tolist()


def test_charges_labels_and_uncertainties(make):
    text = read(make, "rock_salt_p1.cif")
    crystal = cif._expanded(text)
    assert crystal is not None
    assert crystal.formula == "Na4 Cl4"
    assert crystal.lattice[0, 0] == pytest.approx(5.64056)


def test_rounded_thirds_become_exact(make):
    text = read(make, "rock_salt_p1.cif").replace("0.0  0.5  0.5", "0.3333  0.6667  0.5")
    crystal = cif._expanded(text)
    assert crystal is not None
    assert crystal.frac[1].tolist() == [1 / 3, 2 / 3, 0.5]


@pytest.mark.parametrize(
    "change",
    [
        ("Tables_number   1", "Tables_number   225"),  # symmetry to be applied
        ("'x, y, z'", "'-x, y, z'"),
        ("0.0  0.0  0.0  1", "0.0  0.0  0.0  0.5"),  # occupancy
        ("0.0  0.5  0.5  1", "0.0  0.0  0.0  1"),  # two atoms in one place
        ("Na+  Na0", "D  D0"),
        ("_cell_volume   179.46", "_cell_volume\n179.46"),
        ("_chemical_formula_structural   NaCl", "_chemical_name\n;\nhalite\n;"),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_pymatgen(make, change):
    text = read(make, "rock_salt_p1.cif")
    assert cif._expanded(text) is not None
    assert change[0] in text
    assert cif._expanded(text.replace(*change)) is None


def test_symmetry_is_applied(make):
    crystal = parse_cif(read(make, "fluorite_symmetric.cif"))
    assert sorted(crystal.numbers.tolist()) == [9] * 8 + [20] * 4


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("malformed", "malformed-cif", "no structure can be read"),
        ("partial_occupancy", "partial-occupancy", "partially occupied"),
        ("unknown_element", "unknown-element", "Xx"),
    ],
)
def test_unusable_files_say_why(make, name, reason, said):
    with pytest.raises(CifError, match=said) as caught:
        parse_cif(read(make, f"{name}.cif"))
    assert caught.value.reason == reason


def test_garbage_is_an_error_not_a_crash():
    for text in ("", "data_", "\x00\x01", "loop_\n_atom_site_fract_x\n", "{'a': 1}", "data_x\n_cell_length_a 'open"):
        with pytest.raises(CifError):
            parse_cif(text)


def test_blocks(make):
    blocks = dict(split_blocks(read(make, "two_blocks.cif")))
    assert list(blocks) == ["iron", "polonium"]
    assert parse_cif(blocks["polonium"]).formula == "Po1"
    assert len(parse_cif(blocks["iron"])) == 2
