"""Parameter files that come with the project, by name."""

from __future__ import annotations

from pathlib import Path

import crystalforge
from crystalforge.common.errors import InputError, one_of

QUICKSTART = "quickstart"
PACKAGE = Path(crystalforge.__file__ or "").resolve().parent
INSTALLED = PACKAGE / "recipes"
"""Where a wheel has them; in a checkout or an editable installation they lie beside `src`."""
CHECKOUT = PACKAGE.parents[1]


def recipes() -> dict[str, Path]:
    """The recipes that can be had here, by name: those of the working directory before those that came along.

    `quickstart` is the project's own params.yaml; those in a folder have its name before theirs, as `published/sft`.
    """
    found = {
        file.relative_to(place).with_suffix("").as_posix(): file
        for place in (INSTALLED, CHECKOUT / "recipes", Path("recipes"))
        for file in sorted(place.rglob("*.yaml"))
    }
    if (CHECKOUT / "params.yaml").is_file() and (CHECKOUT / "recipes").is_dir():
        found.setdefault(QUICKSTART, CHECKOUT / "params.yaml")
    return dict(sorted(found.items()))


def find_recipe(name: str) -> Path:
    """The parameter file of the recipe `name`. Raises InputError when there is none, naming those that there are."""
    known = recipes()
    if name not in known:
        raise InputError(
            f"there is no recipe {name!r}",
            remedy=one_of(
                "choose one of", known, nothing="no recipe came with this installation: give a file by --config"
            ),
        )
    return known[name]
