"""What pyproject.toml cannot say: the recipes, which lie beside the sources, go into the wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class WithRecipes(build_py):
    """Puts the recipes into crystalforge/recipes, and params.yaml there as quickstart.yaml."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout's own are found
        target = Path(self.build_lib) / "crystalforge" / "recipes"
        target.mkdir(parents=True, exist_ok=True)
        for file in ROOT.glob("recipes/**/*.yaml"):
            copy = target / file.relative_to(ROOT / "recipes")
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        shutil.copyfile(ROOT / "params.yaml", target / "quickstart.yaml")


setup(cmdclass={"build_py": WithRecipes})
