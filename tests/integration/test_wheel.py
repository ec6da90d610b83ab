"""The wheel is whole: built, installed beside nothing of the checkout, and put to work from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
NO_SOURCES = shutil.ignore_patterns(".*", "runs", "work", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs")
SMALL = (
    "data.limit=60", "finetune.steps=1", "finetune.batch_size=4", "evaluate.samples=6", "evaluate.nearest=false",
    "evaluate.gallery=1", "evaluate.candidates=5", "service.mode=in-process", "reward.kind=property",
    "reward.source={kind: descriptor, quantity: density}", "tracking.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes beside the sources."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, root / "sources", ignore=NO_SOURCES)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        root,
    ]
    built = subprocess.run([*command, root / "sources"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = root.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and our own one's packages as its dependencies; gives its folder of programs.

    A `.pth` file adds a folder without reading the `.pth` files in it: our editable installation stays unknown.
    """
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    script = place / "bin" / "crystalforge"
    script.write_text(f"#!{place}/bin/python\nfrom crystalforge.cli import main\nmain()\n")
    script.chmod(0o755)
    return script.parent


def outside() -> dict[str, str]:
    """An environment in which nothing points to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def call(installed: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "crystalforge", *arguments], cwd=place, capture_output=True, text=True,
        env=outside() | {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip


def test_every_file_that_a_verb_reads_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {f"crystalforge/recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")}
    assert recipes | {"crystalforge/recipes/quickstart.yaml"} <= names
    ours = [
        path for top in ("src/crystalforge", "serving", "pipelines", "components") for path in (ROOT / top).rglob("*")
    ]
    data = [path for path in ours if path.is_file() and "__pycache__" not in path.parts]
    relative = {str(path.relative_to(ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT)) for path in data}
    assert {name for name in relative if not name.endswith(("py.typed", ".egg-info"))} - names == set()


def test_help_recipes_sampling_and_scoring(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed / "python", "-c", "import crystalforge; print(crystalforge.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=outside(),
    )  # fmt: skip
    assert where.stdout.startswith(str(installed.parent)), "not the checkout's"
    assert call(installed, tmp_path, "--help").returncode == 0
    done = call(installed, tmp_path, "run", "--recipe", "mp21")
    assert done.returncode == 2
    for name in ("mp20", "quickstart", "stability"):
        assert name in done.stderr
    done = call(installed, tmp_path, "sample", "-m", "mp20", "-n", "2", "--spacegroup", "225", "-o", "drawn", "--cif")
    assert done.returncode == 0, done.stderr
    cifs = sorted(str(path) for path in (tmp_path / "drawn").rglob("*.cif"))
    assert cifs
    done = call(installed, tmp_path, "score", "-m", "mp20", *cifs, "-o", "scored.parquet", "-j", "1")
    assert done.returncode == 0, done.stderr
    assert len(pq.read_table(tmp_path / "scored.parquet")) == len(cifs)


def test_a_run_by_a_recipe_ends_with_a_report(installed: Path, tmp_path: Path) -> None:
    settings = [word for assignment in SMALL for word in ("--set", assignment)]
    done = call(installed, tmp_path, "run", "--recipe", "mp20", "--set", "reward={kind: property}", *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert summary["models"]["tuned"]["n"] == 6
    assert (tmp_path / "runs" / "latest" / "evaluate" / "report.html").stat().st_size > 100_000


CORE = """
import sys

BLOCKED = set({blocked!r})

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
IN_PYTHON = """
import crystalforge

for model in ("mp20", "mp"):
    generator = crystalforge.load(model)
    crystals = generator.sample(2, formula="NaCl", spacegroup=225, seed=1)
    assert generator.log_prob(crystals)["log_prob"].max() < 0
    for kind, given in {"Structure": crystals.to_structures(), "Atoms": crystals.to_atoms()}.items():
        assert [type(one).__name__ for one in given] == [kind] * 2
        assert crystalforge.Crystals.of(given).formulas == ["NaCl"] * 2
density = {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}}
assert (crystalforge.judge(density)(crystals)["reward"] > 0.5).all()
blind = crystalforge.judge(lambda crystals: [0.0] * len(crystals))
for what in (
    lambda: crystalforge.judge("chgnet"),
    lambda: crystalforge.judge("sevennet"),
    lambda: crystalforge.judge(address="localhost:1"),
    lambda: crystalforge.load("models:/a@b"),
    lambda: crystalforge.evaluate(crystals, judge=blind),
):
    try:
        print(what())
    except crystalforge.InputError as error:
        print(str(error).partition("Remedy: ")[2])
"""


def beyond_the_core() -> set[str]:
    """Names of modules that only packages beyond the core dependencies, and theirs, bring."""
    core, left = set(), [Requirement(line) for line in metadata.requires("crystalforge") or []]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in core or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            left += [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        core.add(name)
    return {
        module
        for module, packages in metadata.packages_distributions().items()
        if not core & {canonicalize_name(name) for name in packages} and module not in ("crystalforge", "setuptools")
    }


def test_with_core_dependencies_alone_and_the_extra_for_the_rest(installed: Path, tmp_path: Path) -> None:
    blocked = sorted(beyond_the_core() - set(sys.stdlib_module_names))
    assert {"mlflow", "chgnet", "tritonclient", "kfp", "smact", "mcp", "pytest"} <= set(blocked)
    assert not {"torch", "numpy", "pymatgen", "ase", "pandas", "spglib", "typer"} & set(blocked)
    (tmp_path / "core.py").write_text(CORE.format(blocked=blocked))
    (tmp_path / "in_python.py").write_text("import core\n" + IN_PYTHON)
    (tmp_path / "verb.py").write_text("import core\nfrom crystalforge.cli import main\nmain()\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [installed / "python", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=outside())

    done = run("in_python.py")
    assert done.returncode == 0, done.stderr
    extras = ["potentials", "judges", "platform", "platform", "evaluation"]
    assert done.stdout.splitlines() == [f"pip install 'crystalforge[{extra}]'." for extra in extras]
    for verb, extra in {
        "run --recipe mp20": "platform",
        "mcp": "mcp",
        "sample -m models:/a@b -n 1 -o x": "platform",
    }.items():
        done = run("verb.py", *verb.split())
        assert done.returncode == 2, done.stderr
        assert f"pip install 'crystalforge[{extra}]'" in done.stderr
    done = run("verb.py", "sample", "-m", "mp20", "-n", "2", "-o", "drawn", "--cif")
    assert done.returncode == 0, done.stderr
