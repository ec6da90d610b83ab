"""Substitutions are balanced, repeatable and drawn by their probability."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from crystalforge.data.substitution import AVOIDED, MAX_Z, decorations, prototypes


@pytest.fixture(scope="module")
def by_label():
    return {prototype.label: prototype for prototype in prototypes()}


def test_the_library(by_label):
    assert len(by_label) > 230, "labels are unique"
    assert max(len(prototype.structure) for prototype in by_label.values()) == 20
    assert max(max(prototype.structure.atomic_numbers) for prototype in by_label.values()) <= MAX_Z


@pytest.mark.parametrize("label", ["AB_cF8_225_a_b", "AB3C_cP5_221_a_c_b", "A3B4_tI28_141_ad_h", "AB2_tI6_139_a_e"])
def test_decorations_are_new_balanced_and_repeatable(by_label, label):
    prototype = by_label[label]
    found = decorations(prototype, 25, seed=0)
    assert found == decorations(prototype, 25, seed=0)
    assert found != decorations(prototype, 25, seed=1)
    assert len(set(found)) == len(found) == 25
    original = tuple(prototype.elements)
    amounts = prototype.structure.composition
    for symbols in found:
        assert symbols != original
        assert len(set(symbols)) == len(symbols)
        for new, old in zip(symbols, original, strict=True):
            assert new == old or Element(new).Z not in AVOIDED
        if prototype.charges is not None or prototype.mixed:
            formula = Composition({new: amounts[old] for new, old in zip(symbols, original, strict=True)})
            states = {symbol: list(Element(symbol).oxidation_states) for symbol in symbols}
            assert formula.oxi_state_guesses(oxi_states_override=states), formula


def test_likely_ions_come_more_often(by_label):
    """Na+ -> K+ is likelier than Na+ -> Au+ (Hautier et al.): over many seeds it is drawn more often."""
    rock_salt = by_label["AB_cF8_225_a_b"]
    assert rock_salt.elements == ["Cl", "Na"]
    draws = [cation for seed in range(40) for _, cation in decorations(rock_salt, 5, seed=seed)]
    assert draws.count("K") > draws.count("Au")


def test_a_decoration_keeps_cell_and_sites(by_label):
    perovskite = by_label["AB3C_cP5_221_a_c_b"]
    made = perovskite.decorated(("Ba", "O", "Zr"))
    assert made.composition.reduced_formula == "BaZrO3"
    np.testing.assert_array_equal(made.frac_coords, perovskite.structure.frac_coords)
    assert perovskite.structure.composition.reduced_formula == "CaTiO3", "the structure type itself is not changed"
    assert perovskite.name(("Ba", "O", "Zr")) == "AB3C_cP5_221_a_c_b:Ba-O-Zr"
