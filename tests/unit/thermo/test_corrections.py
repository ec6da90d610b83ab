"""Corrections equal pymatgen's own on entries that describe real runs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.thermo.corrections import corrected_entry, mp2020_corrections, run_parameters

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
PAIR = [[0, 0, 0], [0.5, 0.5, 0.5]]


def rock_salt(a: float, first: int, second: int) -> Crystal:
    return Crystal.of(a * FCC, [first, second], PAIR)


CASES = {
    "oxide": rock_salt(4.26, 12, 8),
    "oxide with U": rock_salt(4.3, 26, 8),
    "fluoride with U": Crystal.of(4.6 * np.eye(3), [25, 9, 9], [[0, 0, 0], [0.3, 0.3, 0], [0.7, 0.7, 0.5]]),
    "no U without O or F": rock_salt(5.2, 26, 17),
    "sulphide": rock_salt(5.2, 12, 16),
    "polysulphide": Crystal.of(np.diag([4.2, 6.5, 5.0]), [12, 16, 16], [[0, 0, 0], [0.5, 0.35, 0.5], [0.5, 0.67, 0.5]]),
    "peroxide": Crystal.of(np.diag([4.5, 4.5, 6.5]), [12, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.385], [0.5, 0.5, 0.615]]),
    "superoxide": Crystal.of(np.diag([4.5, 4.5, 6.5]), [19, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.4], [0.5, 0.5, 0.605]]),
    "hydride": rock_salt(4.1, 3, 1),
    "nitride": rock_salt(4.2, 22, 7),
    "chloride": rock_salt(5.69, 11, 17),
    "intermetallic": rock_salt(3.6, 13, 28),
    "element": rock_salt(5.4, 14, 14),
    "sulphate-like": Crystal.of(
        6.5 * np.eye(3),
        [12, 16, 8, 8, 8, 8],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.37, 0.37, 0.37], [0.63, 0.63, 0.37], [0.63, 0.37, 0.63], [0.37, 0.63, 0.63]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_pymatgen(case):
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.vasp.sets import MPRelaxSet

    crystal = CASES[case]
    structure = crystal.to_structure()
    # What VASP would have been given, worked out by pymatgen itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        incar = MPRelaxSet(structure).incar
    symbols = [site.specie.symbol for site in structure]
    order = list(dict.fromkeys(MPRelaxSet(structure).poscar.site_symbols))
    hubbards = dict(zip(order, incar["LDAUU"], strict=True)) if incar.get("LDAU") else {}
    entry = ComputedStructureEntry(
        structure,
        -1.0,
        parameters={
            "run_type": "GGA+U" if any(hubbards.values()) else "GGA",
            "hubbards": hubbards,
            "potcar_symbols": [f"PBE {MPRelaxSet.CONFIG['POTCAR'][symbol]}" for symbol in dict.fromkeys(symbols)],
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = MaterialsProject2020Compatibility().process_entry(entry)
    assert wanted is not None
    assert mp2020_corrections([crystal])[0] == pytest.approx(wanted.correction / len(crystal), abs=1e-12)
    ours = corrected_entry(crystal, -1.0)
    assert ours.correction == pytest.approx(wanted.correction, abs=1e-12)
    assert {a.name for a in ours.energy_adjustments} == {a.name for a in wanted.energy_adjustments}


def test_cases_do_differ():
    values = dict(zip(CASES, mp2020_corrections(list(CASES.values())), strict=True))
    assert values["element"] == 0
    assert values["intermetallic"] == 0
    assert values["peroxide"] != values["oxide"] != 0
    assert values["oxide with U"] < values["oxide"] < 0


def test_parameters_pass_pymatgens_own_potcar_check():
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    structure = CASES["oxide with U"].to_structure()
    entry = ComputedStructureEntry(structure, -1.0, parameters=run_parameters(structure.composition))
    scheme = MaterialsProject2020Compatibility(check_potcar=True)
    assert scheme.process_entry(entry, on_error="raise") is not None
    assert entry.parameters["hubbards"] == {"Fe": 5.3, "O": 0.0}


def test_one_odd_crystal_does_not_spoil_the_rest():
    odd = Crystal.of(np.zeros((3, 3)), [12, 8], PAIR)
    values = mp2020_corrections([CASES["oxide"], odd, CASES["oxide"]])
    assert np.isnan(values[1])
    assert values[0] == values[2]
