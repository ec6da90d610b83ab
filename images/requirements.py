"""The package's dependencies with the named extras, one a line: what an image installs, at the versions of the lock.

python3 requirements.py platform potentials judges > requirements.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """The `[project]` table's dependencies and those of `extras`; KeyError names an extra that does not exist."""
    dependencies, optional = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list)
    assert isinstance(optional, dict)
    return [*dependencies, *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    content = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
    print("\n".join(requirements(content["project"], sys.argv[1:])))
