"""The public names: listed once, described in CHANGELOG.md, cheap to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import crystalforge

ROOT = Path(__file__).parents[3]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def interface() -> list[str]:
    """Every public name with the names of its parameters, methods included; one line each."""
    lines = []
    for name in crystalforge.__all__:
        thing = getattr(crystalforge, name)
        if inspect.isclass(thing):
            lines.append(name)
            members = [key for key in vars(thing) if not key.startswith("_") or key in ("__call__",)]
            for key in sorted(members):
                member = inspect.getattr_static(thing, key)
                function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                lines.append(f"{name}.{key}{_parameters(function)}")
            if hasattr(thing, "model_fields"):
                lines += [f"{name}.{field}" for field in thing.model_fields]
        else:
            lines.append(f"{name}{_parameters(thing)}")
    return list(dict.fromkeys(lines))


def _parameters(function: object) -> str:
    if not inspect.isfunction(function):
        return ""
    return f"({', '.join(name for name in inspect.signature(function).parameters if name not in ('self', 'cls'))})"


def test_a_public_name_changes_with_the_changelog_only() -> None:
    block = re.search(r"## Public interface.*?```text\n(.*?)```", CHANGELOG, flags=re.DOTALL)
    assert block is not None
    assert block[1].splitlines() == interface(), "say in CHANGELOG.md what changed, and list the interface as it is now"


def test_the_version_has_an_entry() -> None:
    assert re.search(rf"^## {re.escape(crystalforge.__version__)}\b", CHANGELOG, flags=re.MULTILINE)


def test_lazy_names_are_the_typed_and_listed_ones() -> None:
    assert sorted(crystalforge._HOMES) == crystalforge.__all__ == sorted(crystalforge.__all__)
    assert set(crystalforge.__all__) <= set(dir(crystalforge))
    source = Path(crystalforge.__file__).read_text().partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    typed = {name.strip() for line in re.findall(r"import (.+)", source) for name in line.split(",")}
    assert typed == set(crystalforge.__all__)
    assert (Path(crystalforge.__file__).parent / "py.typed").exists()


def test_importing_costs_nothing_and_brings_no_torch() -> None:
    code = (
        "import sys, time; began = time.process_time(); import crystalforge; crystalforge.InputError; "
        "spent = time.process_time() - began; "
        "assert not {'torch', 'pymatgen', 'pandas'} & set(sys.modules), 'slow packages'; print(spent)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_every_public_name_has_a_description_and_an_example() -> None:
    for name in crystalforge.__all__:
        thing = getattr(crystalforge, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert ">>>" in (inspect.getdoc(thing) or ""), name
