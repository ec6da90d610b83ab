"""Which element a site is: type symbols in any dress, labels where there is nothing else."""

from __future__ import annotations

import pytest

from crystalforge.crystal.reading.cif.species import atomic_numbers
from crystalforge.crystal.reading.reasons import Unusable


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        ("Na", 11), ("NA", 11), ("na", 11), ("CL", 17), ("CO", 27), ("HO", 67), ("Na1+", 11), ("Na+1", 11), ("NA+", 11),
        ("O2-", 8), ("O-2", 8), ("Fe(III)", 26), ("Fe(3+)", 26), ("Fe2.5+", 26), ("Fe3", 26), ("O1", 8), ("Na0+", 11),
        ("D", 1), ("T", 1), ("2H", 1), ("13C", 6), ("C13", 6), ("57Fe", 26), ("D1+", 1), ("Cval", 6), ("Siva", 14),
        ("He", 2), ("Cm", 96), ("U", 92),
    ],
)  # fmt: skip
def test_a_type_symbol_names_an_element(symbol, number):
    assert atomic_numbers([symbol], ["X1"], ()) == [number]


@pytest.mark.parametrize(
    "symbol", ["OH", "OH2", "H2O", "Wat", "NH4", "CH3", "CN", "NO3", "Xx", "Q", "Du", "Fe_pv", "+", "1"]
)
def test_what_is_no_element_is_refused(symbol):
    with pytest.raises(Unusable) as caught:
        atomic_numbers([symbol], ["O1"], (8, 1))
    assert caught.value.reason == "unknown-element"
    assert symbol in str(caught.value)


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("Na1", 11), ("H12B", 1), ("Cl(1)", 17), ("O_1", 8), ("OW1", 8), ("Ow", 8), ("HW2", 1), ("FeM1", 26),
        ("SiT", 14), ("MgM2", 12), ("OA1", 8), ("K", 19), ("C10", 6), ("ZN1", 30), ("MG", 12), ("O1'", 8),
    ],
)  # fmt: skip
def test_a_label_that_can_be_one_element_only_is_enough(label, number):
    assert atomic_numbers([None], [label], ()) == [number]


@pytest.mark.parametrize(
    ("label", "formula", "number"),
    [
        ("CA1", (20, 8), 20), ("CA1", (6, 1, 8), 6), ("CL1", (17, 11), 17), ("CO2", (27,), 27), ("HO1", (1, 8), 1),
        ("OH1", (8, 1), 8), ("Wat1", (8, 1, 20), 8), ("D1", (1, 8), 1), ("NH1", (7, 1), 7), ("Oa", (8, 20), 8),
    ],
)  # fmt: skip
def test_an_open_label_is_decided_by_the_formula(label, formula, number):
    assert atomic_numbers([None], [label], formula) == [number]
    with pytest.raises(Unusable, match="label"):
        atomic_numbers([None], [label], ())


@pytest.mark.parametrize("label", ["CA1", "CO1", "X1", "M1", "T1", "Cg1", "Bq", "Vac1", "Du", "?", "1", "A"])
def test_a_label_that_nothing_decides_is_refused(label):
    with pytest.raises(Unusable):
        atomic_numbers([None], [label], (6, 20, 27))
