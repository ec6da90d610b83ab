"""CIF to crystal: what is read, and what is refused because the file contradicts itself or leaves something open."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import tokenize
from crystalforge.crystal.reading.cif import parse_cif, split_blocks
from crystalforge.crystal.reading.reasons import Unusable

SAME = 1e-9  # Å and fractional: the same formulas in another order


def cif(
    cell: tuple[float | str, ...] = (4.12, 4.12, 4.12, 90, 90, 90),
    *,
    head: str = "_symmetry_space_group_name_H-M 'P 1'",
    sites: str = "Cs1 Cs 0 0 0\nCl1 Cl 0.5 0.5 0.5",
    columns: str = "label type_symbol fract_x fract_y fract_z",
) -> str:
    """A small CIF."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", head, *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True)), "loop_"]
    return "\n".join([*lines, *(f"_atom_site_{name}" for name in columns.split()), sites, ""])


def refusal(text: str) -> Unusable:
    with pytest.raises(Unusable) as caught:
        parse_cif(text)
    return caught.value


def group(crystal: Crystal) -> int:
    return int(tokenize(crystal).spacegroup[0])


@pytest.mark.parametrize("parameters", [(5, 6, 7, 90, 90, 90), (6.1, 7.2, 8.3, 71, 95, 112), (5, 5, 7, 90, 90, 120)])
def test_a_list_of_all_atoms_is_read_as_pymatgen_reads_it(parameters):
    frac = [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0.61234567, 0.1, 0.999]]
    text = str(CifWriter(Structure(Lattice.from_parameters(*parameters), ["Mg", "O", "Fe"], frac)))
    ours = parse_cif(text)
    theirs = CifParser.from_str(text).parse_structures(primitive=False)[0]
    np.testing.assert_allclose(ours.lattice, theirs.lattice.matrix, atol=SAME)
    np.testing.assert_allclose(ours.frac, theirs.frac_coords, atol=SAME)
    assert ours.numbers.tolist() == list(theirs.atomic_numbers)


def test_charges_labels_and_uncertainties(make):
    crystal = parse_cif((make.cifs / "rock_salt_p1.cif").read_text())
    assert crystal.formula == "Na4 Cl4"
    assert crystal.lattice[0, 0] == pytest.approx(5.64056)


def test_rounded_thirds_become_exact_and_ratios_are_numbers():
    crystal = parse_cif(cif(sites="Cs1 Cs 0.3333 0.6667 0.5\nCl1 Cl 1/3 -1/4 0"))
    assert crystal.frac.tolist() == [[1 / 3, 2 / 3, 0.5], [1 / 3, -0.25, 0]]


def test_symmetry_is_applied(make):
    crystal = parse_cif((make.cifs / "fluorite_symmetric.cif").read_text())
    assert sorted(crystal.numbers.tolist()) == [9] * 8 + [20] * 4


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("malformed", "malformed-cif", "no CIF"),
        ("partial_occupancy", "partial-occupancy", "partially occupied"),
        ("unknown_element", "unknown-element", "Xx"),
    ],
)
def test_unusable_files_say_why(make, name, reason, said):
    error = refusal((make.cifs / f"{name}.cif").read_text())
    assert error.reason == reason
    assert said in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data_",
        "\x00\x01",
        "loop_\n_atom_site_fract_x\n",
        "{'a': 1}",
        "data_x\n_cell_length_a 'open",
        "data_x\n_title\n;\nnever closed\n",
        cif() + "extra\n",
        cif(sites="Cs1 Cs nan 0 0"),
        cif(sites="Cs1 Cs ? ? ?"),
        cif((4, 4, "?", 90, 90, 90)),
        cif((4, 4, "inf", 90, 90, 90)),
        cif(columns="label type_symbol Cartn_x Cartn_y Cartn_z"),
        cif(head="_symmetry_space_group_name_H-M 'P x y z'"),
        cif(head="_symmetry_Int_Tables_number 231"),
        cif(head="_cell_modulation_dimension 1\n_symmetry_space_group_name_H-M 'P 1'"),
    ],
)
def test_garbage_is_an_error_not_a_crash(text):
    assert refusal(text).reason in ("malformed-cif",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("<!DOCTYPE html><html>", "HTML"),
        ("NaCl\n1.0\n5 0 0\n0 5 0\n0 0 5\nNa Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", "POSCAR"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ('{"lattice": 1}', "JSON"),
    ],
)
def test_what_is_no_cif_is_called_by_its_name(text, said):
    assert said in str(refusal(text))


def test_a_text_without_blocks_has_none():
    assert list(split_blocks("")) == list(split_blocks("nothing\n")) == []


def test_blocks(make):
    blocks = dict(split_blocks((make.cifs / "two_blocks.cif").read_text()))
    assert list(blocks) == ["iron", "polonium"]
    assert parse_cif(blocks["polonium"]).formula == "Po1"
    assert len(parse_cif(blocks["iron"])) == 2


def test_keywords_in_text_fields_and_in_any_case_are_understood():
    text = cif(
        head="_publ_section_title\n;\ndata_not a block\nloop_\n_atom_site_fract_x 9\n;\n_space_group_IT_number 1"
    )
    text = (
        text.replace("data_x", "DATA_x")
        .replace("\nloop_\n_atom", "\nLoop_\n_atom")
        .replace("_cell_length_a", "_CELL_length_A")
    )
    assert [name for name, _ in split_blocks(text)] == ["x"]
    assert parse_cif(text).formula == "Cs1 Cl1"


def test_both_dictionaries_name_the_same_items():
    text = cif(head="_space_group.name_H-M_alt 'P m -3 m'\n_space_group.IT_number 221")
    text = text.replace("_atom_site_", "_atom_site.").replace("_cell_", "_cell.")
    assert group(parse_cif(text)) == 221


# -- symmetry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "cell", "sites", "formula", "number"),
    [
        ("_symmetry_space_group_name_H-M 'F d -3 m :2'", (5.43,) * 3 + (90,) * 3, "Si Si .125 .125 .125", "Si8", 227),
        ("_symmetry_space_group_name_H-M 'F d -3 m Z'", (5.43,) * 3 + (90,) * 3, "Si Si .125 .125 .125", "Si8", 227),
        ("_symmetry_space_group_name_H-M 'F d -3 m S'", (5.43,) * 3 + (90,) * 3, "Si Si 0 0 0", "Si8", 227),
        ("_symmetry_space_group_name_H-M 'F 41/d -3 2/m :1'", (5.43,) * 3 + (90,) * 3, "Si Si 0 0 0", "Si8", 227),
        ("_symmetry_space_group_name_Hall '-F 4vw 2vw 3'", (5.43,) * 3 + (90,) * 3, "Si Si .125 .125 .125", "Si8", 227),
        ("_symmetry_space_group_name_H-M 'R -3 m :R'", (4.13,) * 3 + (54.1,) * 3, "As As .227 .227 .227", "As2", 166),
        ("_symmetry_space_group_name_H-M 'R-3m (rh)'", (4.13,) * 3 + (54.1,) * 3, "As As .227 .227 .227", "As2", 166),
        ("_symmetry_space_group_name_H-M R-3m", (4.13,) * 3 + (54.1,) * 3, "As As .227 .227 .227", "As2", 166),
        ("_symmetry_Int_Tables_number 166", (3.76, 3.76, 10.55, 90, 90, 120), "As As 0 0 .227", "As6", 166),
        ("_symmetry_space_group_name_H-M 'P 63/m m c'", (3.2, 3.2, 5.2, 90, 90, 120), "Mg Mg .33 .67 .25", "Mg2", 194),
        ("_symmetry_space_group_name_H-M 'P 6(3)/mmc'", (3.2, 3.2, 5.2, 90, 90, 120), "Mg Mg .33 .67 .25", "Mg2", 194),
        ("_space_group_name_H-M_alt 'P b n m'", (4.8, 10.2, 6.0, 90, 90, 90), "S1 S .1 .2 .25", "S4", None),
        ("_space_group_name_H-M_alt 'P 21/c'", (5, 6, 7, 90, 90, 101), "S1 S .1 .2 .3", None, None),
        ("_space_group_name_H-M_alt 'P 1 1 21/b'", (5, 6, 7, 90, 90, 101), "S1 S .1 .2 .3", "S4", 14),
    ],
)  # fmt: skip
def test_a_setting_is_taken_as_stated(head, cell, sites, formula, number):
    text = cif(cell, head=head, sites=sites)
    if formula is None:
        assert refusal(text).reason in ("contradiction", "ambiguous-symmetry")
        return
    crystal = parse_cif(text)
    assert crystal.formula == formula
    assert number is None or group(crystal) == number


def test_where_the_origin_is_open_the_formula_decides_or_nothing():
    cell = (5.43,) * 3 + (90,) * 3
    symbol = "_symmetry_space_group_name_H-M 'F d -3 m'"
    error = refusal(cif(cell, head=symbol, sites="Si Si .125 .125 .125"))
    assert error.reason == "ambiguous-symmetry"
    assert "Si16" in str(error)
    assert "Si8" in str(error)
    told = symbol + "\n_chemical_formula_sum Si\n_cell_formula_units_Z 8"
    assert parse_cif(cif(cell, head=told, sites="Si Si .125 .125 .125")).formula == "Si8"
    dense = symbol + "\n_exptl_crystal_density_diffrn 2.33"
    assert parse_cif(cif(cell, head=dense, sites="Si Si .125 .125 .125")).formula == "Si8"


@pytest.mark.parametrize(
    "head",
    [
        "_symmetry_space_group_name_H-M 'P 1'\n_symmetry_Int_Tables_number 225",
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_symmetry_equiv_pos_as_xyz\nx,y,z",
        "_symmetry_space_group_name_Hall '-F 4 2 3'\nloop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,-z",
        "_space_group_IT_number 2\nloop_\n_symmetry_equiv_pos_as_xyz\nx,y,z",
        "_space_group_IT_number 2\n_space_group_name_Hall 'P 1'",
        "_space_group_name_H-M_alt 'P b n m'\n_space_group_name_Hall '-P 2ac 2n'",
        "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-y,x,z",  # no group: the square of the second is missing
        "loop_\n_symmetry_equiv_pos_as_xyz\n-x,-y,-z",
        "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\nx,y,z",
        "_space_group_name_H-M_alt 'P 4/m m m'",  # a cell with three different edges
        "_space_group_IT_number 166",  # a cell that is neither hexagonal nor rhombohedral
    ],
)
def test_statements_that_exclude_each_other_are_refused(head):
    error = refusal(cif((4.1, 5.3, 6.2, 90, 90, 90), head=head))
    assert error.reason == "contradiction"


def test_a_file_without_a_word_on_symmetry_must_prove_that_it_lists_all_atoms():
    cell, sites = (5.64,) * 3 + (90,) * 3, "Na1 Na 0 0 0\nCl1 Cl .5 .5 .5"
    assert refusal(cif(cell, head="", sites=sites)).reason == "ambiguous-symmetry"
    error = refusal(cif(cell, head="_chemical_formula_sum NaCl\n_cell_formula_units_Z 4", sites=sites))
    assert error.reason == "contradiction"
    told = "_chemical_formula_sum CsCl\n_cell_formula_units_Z 1"
    assert parse_cif(cif(head=told)).formula == "Cs1 Cl1"


@pytest.mark.parametrize("numbered", [False, True])
def test_operations_cut_at_their_spaces_are_put_together(numbered):
    rows = ["x, y, z", "x+1/2, y+1/2, z + 1/2"] if not numbered else ["1 x, y, z", "2 x+1/2, y+1/2, z+1/2"]
    names = "_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz" if numbered else "_symmetry_equiv_pos_as_xyz"
    if not numbered:
        rows[1] = "x+1/2, y+1/2, z+1/2"
    text = cif((4.28,) * 3 + (90,) * 3, head="\n".join(["loop_", names, *rows]), sites="Na1 Na 0 0 0")
    assert parse_cif(text).formula == "Na2"


def test_a_magnetic_file_gives_its_crystal():
    head = (
        "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,-1\n"
        "loop_\n_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx+1/2,y+1/2,z+1/2,-1"
    )
    crystal = parse_cif(cif((8.3, 9.1, 9.2, 80, 85, 95), head=head, sites="Mn1 Mn .1 .2 .3"))
    assert crystal.formula == "Mn4"


def test_a_site_written_with_few_digits_is_moved_onto_its_position():
    crystal = parse_cif(
        cif((3.2, 3.2, 5.2, 90, 90, 120), head="_space_group_IT_number 194", sites="Mg Mg 0.33 0.67 0.25")
    )
    np.testing.assert_allclose(crystal.frac[0], [1 / 3, 2 / 3, 0.25], atol=1e-12)


def test_a_site_between_a_special_and_a_general_position_is_refused():
    error = refusal(cif((5,) * 3 + (90,) * 3, head="_space_group_IT_number 221", sites="Cs Cs 0.05 0 0"))
    assert error.reason == "overlap"


# -- what the file says of itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("_chemical_formula_sum 'Cs1 Cl2'", "Cs1 Cl2"),
        ("_chemical_formula_sum 'H2 Cs Cl'", "H2 Cs Cl"),
        ("_chemical_formula_sum 'Cs2 Cl2'", "formula units"),
        ("_chemical_formula_sum 'Cs Cl'\n_cell_formula_units_Z 2", "Z is stated as 2"),
        ("_chemical_formula_structural CsCl2", "CsCl2"),
        ("_cell_volume 170.1", "volume is stated as 170.1"),
        ("_exptl_crystal_density_diffrn 2.0", "density"),
    ],
)
def test_a_statement_that_is_not_true_of_the_atoms_is_refused(head, said):
    error = refusal(cif(head="_symmetry_space_group_name_H-M 'P 1'\n" + head))
    assert error.reason == "contradiction"
    assert said in str(error)


@pytest.mark.parametrize(
    "head",
    [
        "_chemical_formula_sum 'Cl1 Cs1'\n_cell_formula_units_Z 1\n_cell_volume 69.9(1)",
        "_chemical_formula_sum 'not known'",
        "_chemical_formula_sum ?\n_cell_volume ?",
        "_exptl_crystal_density_diffrn 3.998",
    ],
)
def test_true_statements_and_unknown_ones_do_no_harm(head):
    assert parse_cif(cif(head="_symmetry_space_group_name_H-M 'P 1'\n" + head)).formula == "Cs1 Cl1"


def test_the_content_of_the_cell_as_formula_beside_units_of_the_reduced_one(make):
    structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text = str(CifWriter(structure))
    assert "_chemical_formula_sum   'Na4 Cl4'" in text
    assert "_cell_formula_units_Z   4" in text
    assert parse_cif(text).formula == "Na4 Cl4"


def test_multiplicities_and_letters_are_compared():
    columns = "label type_symbol fract_x fract_y fract_z symmetry_multiplicity Wyckoff_symbol"
    head = "_space_group_IT_number 221"
    assert parse_cif(cif(head=head, columns=columns, sites="Cs Cs 0 0 0 1 a\nO O 0 .5 .5 3 c")).formula == "Cs1 O3"
    assert "multiplicity 3" in str(refusal(cif(head=head, columns=columns, sites="Cs Cs 0 0 0 3 a")))
    assert "position c" in str(refusal(cif(head=head, columns=columns, sites="Cs Cs 0 0 0 1 c")))


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ("A Cs 0 0 0\nA2 Cs 0 0 0", "two Cs atoms on one place"),
        ("A Cs 0 0 0\nA2 Cl 0 0 1", "Cs and Cl on one place"),
        ("A Cs 0 0 0\nA2 Cs .003 .002 .999", "0.015 Å"),
        ("A Cs 0 0 0\nA2 Cl .2 0 0", "apart"),
    ],
)
def test_atoms_that_are_too_near_are_refused(sites, said):
    error = refusal(cif(sites=sites))
    assert error.reason == "overlap"
    assert said.split()[0] in str(error)


def test_disorder_groups_are_refused_even_where_every_site_is_full():
    columns = "label type_symbol fract_x fract_y fract_z disorder_group"
    assert parse_cif(cif(columns=columns, sites="Cs Cs 0 0 0 .\nCl Cl .5 .5 .5 1")).formula == "Cs1 Cl1"
    error = refusal(cif(columns=columns, sites="Cs Cs 0 0 0 1\nCl Cl .5 .5 .5 2"))
    assert error.reason == "partial-occupancy"


def test_occupancies_dots_and_question_marks():
    columns = "label type_symbol fract_x fract_y fract_z occupancy calc_flag"
    told = "_symmetry_space_group_name_H-M 'P 1'\n_chemical_formula_sum 'Cs Cl'"
    sites = "Cs Cs 0 0 0 {0} d\nCl Cl .5 .5 .5 1.0000(5) calc\nX1 Xx ? ? ? 0 dum"
    assert parse_cif(cif(columns=columns, sites=sites.format("."))).formula == "Cs1 Cl1"
    assert parse_cif(cif(columns=columns, sites=sites.format("?"), head=told)).formula == "Cs1 Cl1"
    for text, reason in (
        ("?", "malformed-cif"),
        ("2", "malformed-cif"),
        ("-1", "malformed-cif"),
        ("0.5", "partial-occupancy"),
    ):
        assert refusal(cif(columns=columns, sites=sites.format(text))).reason == reason


def test_hydrogens_that_have_no_place_are_missed():
    columns = "label type_symbol fract_x fract_y fract_z attached_hydrogens"
    error = refusal(cif(columns=columns, sites="Cs Cs 0 0 0 0\nO1 O .5 .5 .5 2"))
    assert error.reason == "contradiction"
    assert "hydrogen" in str(error)


def test_a_cell_in_picometres_is_too_sparse():
    assert refusal(cif((412, 412, 412, 90, 90, 90))).reason == "too-sparse"


def test_an_impossible_cell_is_called_that():
    assert refusal(cif((4, 4, 4, 30, 30, 170))).reason == "degenerate-cell"


def test_every_hermann_mauguin_symbol_of_the_tables_is_understood():
    """spglib's names of its 530 settings lead to gemmi's operations for the same Hall symbol."""
    import gemmi
    import spglib

    from crystalforge.crystal.reading.cif.groups import by_symbol

    for hall in range(1, 531):
        setting = spglib.get_spacegroup_type(hall)
        assert setting is not None
        names = {setting.international_full}
        if setting.number > 15:
            names.add(setting.international_short)
        wanted = {operation.triplet() for operation in gemmi.symops_from_hall(setting.hall_symbol)}
        for name in names:
            found = by_symbol(name)
            assert {entry.number for entry in found} == {setting.number}, name
            assert any({op.triplet() for op in entry.operations()} == wanted for entry in found), name
