"""Parameter files that come with the project, by name."""

from __future__ import annotations

from pathlib import Path

from crystalforge.common.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[3] / "recipes"
"""Beside `src` in a checkout or an image."""


def find_recipe(name: str) -> Path:
    """The file `recipes/<name>.yaml`, of the working directory or of the checkout that this package runs from.

    Raises InputError when there is none, naming those that there are.
    """
    places = [Path("recipes"), CHECKOUT]
    for place in places:
        file = place / f"{name}.yaml"
        if file.is_file():
            return file
    known = sorted({file.stem for place in places for file in place.glob("*.yaml")})
    raise InputError(f"there is no recipe {name!r}", remedy=f"choose one of: {', '.join(known)}")
