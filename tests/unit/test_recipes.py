"""Every parameter file that comes with the project is one that the program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from crystalforge.config import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_a_recipe_can_be_read(recipe: Path) -> None:
    load(recipe)


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.parent.name == "published"], ids=lambda path: path.stem
)
def test_a_published_recipe_says_where_it_comes_from_and_what_deviates(recipe: Path) -> None:
    head = recipe.read_text().split("\nseed:")[0]
    for word in ("arXiv", "Here as there:", "Deviates:", "Needs:"):
        assert word in head, f"{recipe.name}: no {word!r} in its head"
