"""How judges are compared with labels: a judge that says what the labels say, and one that errs in a known way."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from crystalforge.crystal import Crystal

REFERENCE = {11: -1.3, 17: -1.8}  # eV/atom of the elements by the judge
LABELS = {"stable": -2.1, "near": -2.0, "far": -1.5}
SALT = Crystal.of(4 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def recipe(script) -> ModuleType:
    return script("recipes/judges.py")


@pytest.fixture
def elements(recipe):
    return {z: recipe.Phase(f"element-{z}", {z: 1.0}, 0.0) for z in REFERENCE}


@pytest.fixture
def cases(recipe):
    """Three polymorphs of NaCl against one known before, at -2.05 eV/atom."""
    return [recipe.Case(name, SALT, energy, energy + 2.05, {"known": 1.0}) for name, energy in LABELS.items()]


def energies(cases, shift: float = 0.0) -> dict[str, float]:
    """Of a judge that is right, but for `shift` eV/atom in the crystals under test."""
    half = sum(REFERENCE.values()) / 2
    found = {f"element-{z}": energy for z, energy in REFERENCE.items()} | {"known": half - 2.05}
    return found | {case.name: half + case.formation + shift for case in cases}


def test_a_judge_that_says_what_the_labels_say(recipe, cases, elements):
    found = recipe.figures(cases, energies(cases), elements, "pbe")
    for name in ("MAE of E_form", "MAE of E_hull", "mean error of E_form"):
        assert found[name].value == pytest.approx(0, abs=1e-12)
    assert found["rank correlation of E_hull"].value == pytest.approx(1)
    assert found["stable, called stable"].value == 1
    assert found["unstable, called stable"].value == 0
    assert (found["above 0.1, called below 0.1"].value, found["above 0.1, called below 0.1"].n) == (0, 1)


def test_a_judge_that_favours_the_crystals_under_test(recipe, cases, elements):
    found = recipe.figures(cases, energies(cases, -0.07), elements, "pbe")
    assert found["mean error of E_form"].value == pytest.approx(-0.07)
    assert found["MAE of E_hull"].value == pytest.approx(0.07)
    assert found["unstable, called stable"].value == pytest.approx(1 / 2), (
        "the one at 0.05 eV/atom, not the one at 0.55"
    )


def test_what_the_judge_does_not_answer_is_said(recipe, cases, elements):
    energy = energies(cases) | {"far": np.nan}
    found = recipe.figures(cases, energy, elements, "pbe")
    assert found["answered"].value == pytest.approx(2 / 3)
    assert found["MAE of E_form"].n == 2


def test_a_composition_falls_apart_into_the_cheapest_phases(recipe, elements):
    salt = recipe.Phase("salt", {11: 0.5, 17: 0.5}, -2.1)
    dearer = recipe.Phase("dearer", {11: 0.5, 17: 0.5}, -1.9)
    found = recipe.mixture({11: 0.75, 17: 0.25}, [*elements.values(), dearer, salt])
    assert found == {"element-11": pytest.approx(0.5), "salt": pytest.approx(0.5)}
