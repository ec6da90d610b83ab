"""The suite's own promises: no test leaves anything to the next one, what is skipped says how to bring it, and where
everything must run, a skip is a failure. Each by a small suite of its own under this one's conftest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

LEAVES = """
import os, mlflow, pytest

@pytest.fixture(scope="module")
def careless():
    mlflow.set_tracking_uri("sqlite:///module.db")
    os.environ["LEFT"] = "by a module"

def test_sets(careless, tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/a.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/b.db")
    mlflow.set_experiment("mine")
    mlflow.start_run()
    os.environ["CHANGED"] = "by a test"
    del os.environ["GIVEN"]
    os.chdir(tmp_path)
"""
FINDS = """
import os, mlflow

def test_finds_nothing():
    assert os.environ["GIVEN"] == "1"
    assert os.environ["CHANGED"] == "before"
    assert not {"LEFT", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID"} & set(os.environ)
    assert mlflow.active_run() is None
    assert "a.db" not in mlflow.get_tracking_uri() and "module.db" not in mlflow.get_tracking_uri()
    assert mlflow.tracking.fluent._active_experiment_id is None
    assert os.path.exists("conftest.py")
"""
SKIPS = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_skips(n):
    pytest.skip("no Chromium on this machine (apt-get install chromium)")

def test_skips_too():
    pytest.skip("no reference data: none")

def test_runs():
    pass
"""


def suite(place: Path, environment: dict[str, str], *arguments: str, **files: str) -> str:
    """What pytest says of a suite of these files; its exit code is the first line."""
    shutil.copy(CONFTEST, place / "conftest.py")
    for name, content in files.items():
        (place / f"{name}.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "."],
        cwd=place, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CRYSTALFORGE"))} | environment,
    )  # fmt: skip
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_what_a_test_or_a_fixture_sets_is_gone_for_the_next_file(tmp_path: Path) -> None:
    files = {"test_1": LEAVES, "test_2": FINDS}
    environment = {"GIVEN": "1", "CHANGED": "before"}
    said = suite(tmp_path, environment, **files)
    assert said.startswith("0\n"), said


def test_a_skip_is_one_line_with_its_remedy_and_the_seed_is_printed(tmp_path: Path) -> None:
    said = suite(tmp_path, {}, "--random-order", "--random-order-seed=7", test_skips=SKIPS)
    assert said.startswith("0\n"), said
    assert len(re.findall("apt-get install chromium", said)) == 1
    assert "skipped (2): no Chromium on this machine (apt-get install chromium)" in said
    assert "--random-order-seed=7" in said


@pytest.mark.parametrize(("may", "failed"), [("", 1), ("no Chromium", 0)])
def test_where_everything_must_run_a_skip_that_could_be_helped_is_a_failure(
    tmp_path: Path, may: str, failed: int
) -> None:
    environment = {"CRYSTALFORGE_NO_SKIPS": "1", "CRYSTALFORGE_MAY_SKIP": may}
    said = suite(tmp_path, environment, test_skips=SKIPS)
    assert said.startswith(f"{failed}\n"), said
    assert ("2 failed, 1 passed, 1 skipped" if failed else "1 passed, 3 skipped") in said
    assert "apt-get install chromium" in said


def test_continuous_integration_asks_for_that() -> None:
    assert "export CRYSTALFORGE_NO_SKIPS=1" in (CONFTEST.parents[1] / ".ci" / "run").read_text()
