"""Runs every test on one thread, checks every shape annotation of the package at run time, lets no test leave anything
in the process for the next one, and says what was skipped."""

from __future__ import annotations

import os
import sys

# Before numpy and torch start their thread pools: with two processes on two cores, more threads are far slower.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    [
        f"crystalforge.{name}"
        for name in ("crystal", "model", "data", "training", "rewards", "potentials", "thermo", "rl", "evaluation")
    ],
    "beartype.beartype",
)

NO_SKIPS = "CRYSTALFORGE_NO_SKIPS"
# Reasons that a machine cannot do away with: reference data that are no part of the project, tests that are run on
# request, what a GPU's presence excludes, what a container does not allow.
BEYOND = ("no reference data", "on request", "there is a GPU", "not permitted here")
MAY_SKIP = "CRYSTALFORGE_MAY_SKIP"  # further beginnings of reasons, by commas


ROOT = Path(__file__).parents[1]


@contextmanager
def untouched() -> Iterator[None]:
    """What is inside leaves the environment, the working directory and MLflow's globals as they were."""
    environment, place = dict(os.environ), os.getcwd()
    try:
        yield
    finally:
        _forget_mlflow()
        # Not cleared first: between the two, other threads would find nothing.
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(place)


def _forget_mlflow() -> None:
    """MLflow's fluent functions keep addresses, the experiment and runs, in globals and in the environment."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "set_tracking_uri"):
        return
    from mlflow.tracking import fluent

    while mlflow.active_run() is not None:
        mlflow.end_run()
    nothing: Any = None
    mlflow.set_tracking_uri(nothing)
    mlflow.set_registry_uri(nothing)
    fluent._active_experiment_id = None


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing() -> Iterator[None]:
    with untouched():
        yield


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> Iterator[None]:
    with untouched():
        yield


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Loads a program that is run and not imported, by its path from the root; it finds its neighbours as when it is
    run."""

    def load(path: str) -> ModuleType:
        file = ROOT / path
        spec = spec_from_file_location("_".join(Path(path).with_suffix("").parts), file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # where its dataclasses look for their annotations
        sys.path.insert(0, str(file.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
        return module

    return load


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(NO_SKIPS) == "1":
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    if report.skipped and os.environ.get(NO_SKIPS) == "1":
        _refuse(report)
    return report


def _why(report: Any) -> str:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return why.removeprefix("Skipped: ")


def _refuse(report: Any) -> None:
    """A skip becomes a failure, unless no machine can do anything about it."""
    why = _why(report)
    if not why.startswith((*BEYOND, *filter(None, os.environ.get(MAY_SKIP, "").split(",")))):
        report.outcome, report.longrepr = "failed", f"skipped, and {NO_SKIPS} is set: {why}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was not run and how to bring what it needs, a line for each reason; and how the random order comes again."""
    reasons = Counter(_why(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped ({number}): {reason}")
    if config.getoption("random_order_enabled", False):
        seed = str(config.getoption("random_order_seed")).removeprefix("default:")
        terminalreporter.write_line(f"in random order, which comes again with --random-order-seed={seed}")
