"""Recipes of published methods say what they are; that every recipe can be read is tested with the studies. And what a
script of the recipes leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from crystalforge.crystal import Crystal
from crystalforge.platform.recipes import find_recipe
from crystalforge.potentials.base import Prediction

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "recipes" / "published").glob("*.yaml"))


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_recipe_says_where_it_comes_from_and_what_deviates(recipe: Path) -> None:
    head = recipe.read_text().split("\nseed:")[0]
    for word in ("arXiv", "Here as there:", "Deviates:", "Needs:"):
        assert word in head, f"{recipe.name}: no {word!r} in its head"


def test_a_recipe_in_a_folder_has_its_name() -> None:
    assert find_recipe("published/sft").samefile(ROOT / "recipes" / "published" / "sft.yaml")


@pytest.fixture(scope="module")
def own_hull(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("recipes/own_hull.py")


def test_a_hull_for_some_crystals_has_all_phases_of_their_systems_and_no_others(own_hull: ModuleType) -> None:
    formulas = ["Na1", "Cl2", "NaCl", "NaCl3", "K1", "KCl", "Na2O", "NaKCl2", "O2"]
    phases = pd.DataFrame({"formula": formulas})
    found = own_hull.within(phases, pd.Series([[11, 17, 17], [], [19]]))
    assert found.formula.tolist() == ["Na1", "Cl2", "NaCl", "NaCl3", "K1"]


def test_crystals_of_files_folders_and_evaluations_say_which_systems_are_wanted(
    own_hull: ModuleType, tmp_path: Path
) -> None:
    places = [
        tmp_path / "evaluation" / "crystals.parquet",
        tmp_path / "drawn" / "part-0.parquet",
        tmp_path / "a.parquet",
    ]
    for place, numbers in zip(places, ([3, 9], [11, 17], [19, 35]), strict=True):
        place.parent.mkdir(exist_ok=True)
        pd.DataFrame({"atomic_numbers": [numbers]}).to_parquet(place)
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "evaluation" / "summary.parquet")
    found = own_hull.numbers_of([tmp_path / "evaluation", tmp_path / "drawn", tmp_path / "a.parquet"])
    assert [list(row) for row in found] == [[3, 9], [11, 17], [19, 35]]


class Flat:
    """-1 eV an atom. asked: how many crystals it has seen."""

    name, digest, elements = "flat", "flat", frozenset({8, 12})

    def __init__(self, scale: str) -> None:
        self.scale, self.asked = scale, 0

    def predict(self, crystals: Sequence[Crystal]) -> Prediction:
        self.asked += len(crystals)
        return Prediction(-np.array([float(len(crystal)) for crystal in crystals]))


def test_raw_energies_are_brought_to_the_corrected_scale(own_hull: ModuleType, tmp_path: Path) -> None:
    """MgO by the scheme of 2020: -0.687 eV for the oxygen, two atoms (Wang et al. 2021, table 1)."""
    rock = {
        "material_id": "MgO",
        "lattice": (2.1 * (1 - np.eye(3))).tolist(),
        "atomic_numbers": [12, 8],
        "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
    }
    raw, corrected = (
        own_hull.energies(Flat(scale), pd.DataFrame([rock]), tmp_path / scale) for scale in ("pbe", "mp2020")
    )
    assert corrected.tolist() == [-1.0]
    assert raw[0] == pytest.approx(-1 - 0.687 / 2, abs=1e-3)


def test_what_one_call_computed_serves_the_next(own_hull: ModuleType, tmp_path: Path) -> None:
    """Another choice of phases asks for those alone that no earlier one had."""
    cube = {"lattice": (3 * np.eye(3)).tolist(), "atomic_numbers": [29], "frac_coords": [[0.0, 0.0, 0.0]]}
    rows = pd.DataFrame([{"material_id": name, **cube} for name in "abcd"])
    flat = Flat("mp2020")
    own_hull.energies(flat, rows.iloc[:2], tmp_path)
    found = own_hull.energies(flat, rows.iloc[[3, 1, 2]], tmp_path)
    assert flat.asked == 4
    assert found.tolist() == [-1.0, -1.0, -1.0]
