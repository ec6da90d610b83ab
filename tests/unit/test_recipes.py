"""Recipes of published methods say what they are; that every recipe can be read is tested with the studies."""

from __future__ import annotations

from pathlib import Path

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
