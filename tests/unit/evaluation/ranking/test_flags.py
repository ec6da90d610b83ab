"""What is held against a crystal, and how gravely."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.ranking.flags import Evidence, Level, flags_of, red
from crystalforge.thermo.hull import HullStore, Surroundings

TWO = [[0, 0, 0], [0.5, 0.5, 0.5]]
FACE_CENTRED = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def salt(first: int = 11, second: int = 17, edge: float = 5.69) -> Crystal:
    return Crystal.of(edge * FACE_CENTRED, [first, second], TWO)


def levels(evidence: Evidence) -> dict[str, Level]:
    return {flag.name: flag.level for flag in flags_of(evidence)}


def test_a_good_crystal_has_nothing_against_it():
    around = Surroundings(3, 2, (("NaCl", 1.0),))
    found = flags_of(Evidence(salt(), {"a": 0.0, "b": 0.02}, around, rmsd=0.02, volume_change=0.01, converged=True))
    assert [flag.level for flag in found] == [Level.NOTE]
    assert "100% NaCl" in found[0].text


def test_far_below_the_hull_is_red_whoever_says_so():
    """The list once began with BrF at 0.8 eV/atom below the hull."""
    found = levels(Evidence(salt(9, 35, 5.4), {"a": -0.8, "b": 0.05}))
    assert found["below-hull"] is Level.RED
    assert found["judges-differ"] is Level.WARNING
    assert "below-hull" not in levels(Evidence(salt(), {"a": -0.09}))


def test_a_hull_that_knows_little_is_said_with_names():
    none = Evidence(salt(), {}, Surroundings(0, 0, (("Na", 0.5), ("Cl2", 0.5))))
    assert levels(none)["thin-hull"] is Level.RED
    some = flags_of(Evidence(salt(), {}, Surroundings(2, 0, (("Na2S", 0.75), ("S", 0.25)))))
    assert some[0].level is Level.WARNING
    assert "75% Na2S, 25% S" in some[0].text
    assert levels(Evidence(salt(), {}, Surroundings(0, 0, (), missing=True)))["no-hull"] is Level.RED


@pytest.mark.parametrize(("z", "level"), [(54, Level.RED), (93, Level.WARNING)])
def test_elements_that_were_hardly_seen(z, level):
    assert levels(Evidence(salt(second=z, edge=6.5)))["rare-element"] is level


@pytest.mark.parametrize(("edge", "level"), [(3.6, Level.RED), (3.97, Level.WARNING), (5.69, None)])
def test_short_distances(edge, level):
    """The sum of covalent radii of Na and Cl is 2.68 Å; half an edge is the distance."""
    assert levels(Evidence(salt(edge=edge))).get("short-distance") is level


def test_relaxation():
    calm = Evidence(salt(), rmsd=0.1, volume_change=-0.1, converged=True)
    assert not {"moved", "not-converged"} & set(levels(calm))
    assert levels(Evidence(salt(), rmsd=math.inf))["moved"] is Level.WARNING
    assert levels(Evidence(salt(), volume_change=0.5))["moved"] is Level.WARNING
    assert levels(Evidence(salt(), converged=False))["not-converged"] is Level.WARNING


def test_saddles():
    assert "saddle" not in levels(Evidence(salt(), fall=0.0))
    fallen, held = (flags_of(Evidence(salt(), fall=0.1234, held=held))[0] for held in (False, True))
    assert (fallen.name, fallen.level) == ("saddle", Level.NOTE)
    assert "fell by 0.123 eV/atom" in fallen.text
    assert (held.name, held.level) == ("saddle", Level.WARNING)


def test_charge_and_electrons():
    found = levels(Evidence(Crystal.of(4 * np.eye(3), [11, 17, 17], [[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]])))
    assert found["charge"] is Level.WARNING
    assert found["odd-electrons"] is Level.NOTE
    assert not {"charge", "odd-electrons"} & set(levels(Evidence(salt())))


def test_a_judge_without_an_answer_is_named():
    found = flags_of(Evidence(salt(), {"chgnet": math.nan}))
    assert found[0].text == "chgnet has no answer for it."
    assert not red(found)


def test_the_embedded_hull_names_what_competes():
    hull = HullStore.open("embedded")
    around = hull.around(np.array([11, 17]))
    assert around.decomposition == (("NaCl", pytest.approx(1.0)),)
    assert around.n_same_elements >= 1
    mixed = hull.around({11: 3, 17: 1})
    assert dict(mixed.decomposition) == {"NaCl": pytest.approx(0.5), "Na": pytest.approx(0.5)}
