"""Recipes of published methods say what they are; that every recipe can be read is tested with the studies. And what a
script of the recipes leaves out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from crystalforge.platform.recipes import find_recipe

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "recipes" / "published").glob("*.yaml"))


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_recipe_says_where_it_comes_from_and_what_deviates(recipe: Path) -> None:
    head = recipe.read_text().split("\nseed:")[0]
    for word in ("arXiv", "Here as there:", "Deviates:", "Needs:"):
        assert word in head, f"{recipe.name}: no {word!r} in its head"


def test_a_recipe_in_a_folder_has_its_name() -> None:
    assert find_recipe("published/sft").samefile(ROOT / "recipes" / "published" / "sft.yaml")


def test_a_hull_for_some_crystals_has_all_phases_of_their_systems_and_no_others() -> None:
    spec = importlib.util.spec_from_file_location("own_hull", ROOT / "recipes" / "own_hull.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    formulas = ["Na1", "Cl2", "NaCl", "NaCl3", "K1", "KCl", "Na2O", "NaKCl2", "O2"]
    phases = pd.DataFrame({"formula": formulas})
    found = recipe.within(phases, pd.Series([[11, 17, 17], [], [19]]))
    assert found.formula.tolist() == ["Na1", "Cl2", "NaCl", "NaCl3", "K1"]
