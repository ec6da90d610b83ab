"""Pages that lead through the code name what is there, and the tree of folders is the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+\.py)\)")
PAGES = ["docs/walks.md", "docs/architecture.md"]
WALKS = {
    (page, name, target)
    for page in PAGES
    for name, target in LINK.findall((ROOT / page).read_text().replace("\n", " "))
}


def defined(file: Path) -> set[str]:
    """Functions, classes and constants at a module's top level, methods as Class.method."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_walks_are_long_enough_to_be_walks() -> None:
    assert len({name for page, name, _ in WALKS if page == "docs/walks.md"}) > 40


@pytest.mark.parametrize(("page", "name", "target"), sorted(WALKS))
def test_a_name_stands_where_its_link_leads(page: str, name: str, target: str) -> None:
    file = (ROOT / page).parent / target
    assert file.is_file(), f"{page}: no file {target}"
    # A module is named by its file, everything else by what the file defines.
    assert name in defined(file) or name in (file.stem, "/".join(file.parts[-2:])), f"{page}: {target} has no {name}"


def tree_of_the_page() -> set[str]:
    """The folders that the printed tree names, as paths."""
    block = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert block, "docs/architecture.md has no tree"
    found, above = set(), []
    for line in block.group(1).splitlines():
        match = re.match(r"( *)([\w.-]+)/", line)
        if match:
            depth = len(match.group(1)) // 2
            above = [*above[:depth], match.group(2)]
            found.add("/".join(above))
    return found


def rooms() -> set[str]:
    """Folders that git tracks: those at the top, and every one of the package that holds code."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    folders = {Path(name).parent for name in listed if "/" in name and not name.startswith(".")}
    top = {folder.parts[0] for folder in folders}
    package = {
        str(Path(name).parent) for name in listed if name.startswith("src/crystalforge/") and name.endswith(".py")
    }
    return top | package


def test_the_tree_is_the_tree() -> None:
    shown = tree_of_the_page()
    assert rooms() - shown == set(), "not in the tree of docs/architecture.md"
    assert {name for name in shown if not (ROOT / name).is_dir()} == set(), "in the tree, and nowhere else"
