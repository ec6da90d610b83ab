"""What pyproject.toml cannot say: the recipes, which lie beside the sources, go into the wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class WithRecipes(build_py):
    """Puts recipes/*.yaml into crystalforge/recipes, and params.yaml there as quickstart.yaml."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout's own are found
        target = Path(self.build_lib) / "crystalforge" / "recipes"
        target.mkdir(parents=True, exist_ok=True)
        for file in (*ROOT.glob("recipes/*.yaml"), ROOT / "params.yaml"):
            shutil.copyfile(file, target / ("quickstart.yaml" if file.name == "params.yaml" else file.name))


setup(cmdclass={"build_py": WithRecipes})
