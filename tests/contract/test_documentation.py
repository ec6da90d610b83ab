"""The documentation holds: the tutorial runs as written, columns are the ones named, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, one list of words each."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_tutorial_draws_and_scores_as_written(tmp_path: Path) -> None:
    quick = [c for c in commands(ROOT / "docs/tutorial.md") if "mp20" in c and c[1] in ("sample", "score")]
    assert [command[1] for command in quick] == ["sample", "sample", "sample", "score"]
    for command in quick:
        done = subprocess.run(
            [sys.executable, "-m", "crystalforge.cli", *command[1:]],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "first" / "cif").glob("*.cif"))) == 20
    scored = pq.read_table(tmp_path / "surprise.parquet").to_pydict()
    assert len(scored["id"]) == 5
    assert scored["log_prob"] == sorted(scored["log_prob"])  # most surprising first
    assert scored["spacegroup"] == [221] * 5


def test_the_readmes_six_lines_of_python_run_as_they_stand(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "best").glob("*.cif"))) == 5
    assert done.stdout.splitlines()[0].split() == ["formula", "spacegroup", "e_above_hull"]
    assert len(done.stdout.splitlines()) == 6


def test_every_column_of_an_evaluation_is_explained() -> None:
    page = (ROOT / "docs/reference/outputs.md").read_text()
    names = set(re.findall(r"`([a-z_*]+)`", page.partition("## `crystals.parquet`")[2]))
    prefixes = tuple(name.removesuffix("*") for name in names if name.endswith("_*"))
    columns = pq.read_schema(ROOT / "docs/results/stability-crystals.parquet").names
    assert [column for column in columns if column not in names and not column.startswith(prefixes)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert missing == []
