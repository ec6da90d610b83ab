"""The memory of speed: figures found in a benchmark's JSON, and told apart from noise."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def history(script) -> ModuleType:
    return script("benchmarks/_history.py")


def test_every_benchmark_is_there_and_every_figure_can_be_in_what_it_prints(history):
    for name, (_, figures) in history.BENCHMARKS.items():
        text = (FOLDER / f"{name}.py").read_text()
        words = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        for figure in figures:
            keys = [key for key in figure.path.split(".") if not key.isdigit()]
            assert keys[0] in words, f"{name}: {figure.path}"


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ({"value": 80.0, "low": 78.0, "high": 85.0}, "20.0 % worse, beyond its spread"),
        ({"value": 130.0, "low": 120.0, "high": 140.0}, "30.0 % better, beyond its spread"),
        ({"value": 97.0, "low": 94.0, "high": 99.0}, "within its spread"),
        ({"value": 60.0, "low": None, "high": None}, "its spread is not known yet"),
    ],
)
def test_what_moved_is_told_from_what_wobbled(history, now, verdict):
    last = {"value": 100.0, "low": 95.0, "high": 104.0, "commit": "abc"}
    assert history.compare(history.Figure("crystals/s", "x", "y"), now, [last]).endswith(verdict)


def test_a_figure_without_repeats_is_held_against_what_the_class_has_seen(history):
    past = [{"value": value, "low": None, "high": None, "commit": "c"} for value in (9.0, 11.0, 10.0)]
    seconds = history.less("s", "x")
    assert history.compare(seconds, {"value": 10.5, "low": None, "high": None}, past).endswith("within its spread")
    assert history.compare(seconds, {"value": 15.0, "low": None, "high": None}, past).endswith(
        "worse, beyond its spread"
    )
    assert "first of this class" in history.compare(seconds, {"value": 15.0, "low": None, "high": None}, [])


def test_machines_of_a_class_share_a_file_and_others_do_not(history, tmp_path):
    here = {"processor": "AMD EPYC", "cores": 2, "vectors": "avx2"}
    assert history.machine_class(here) == "amd-epyc-2-cores-avx2"
    assert history.machine_class(here | {"cores": 4}) != history.machine_class(here)
    file = tmp_path / "figures" / "class.jsonl"
    for value in (1, 2):
        history.append(file, {"benchmark": "sampler", "figure": "f", "value": value})
    assert [line["value"] for line in history.earlier(history.read(file), "sampler", "f")] == [1, 2]
    assert all(json.loads(line) for line in file.read_text().splitlines())
