"""Compiled components run by the engine's own local runner: a sweep to its one report, a failure to its one message.

The reward counts elements, so that neither potential nor server starts: what is tested is how the steps fit together.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "seed": 0,
    "data": {"source": {"kind": "prototypes"}, "limit": 150},
    "model": {"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "dropout": 0.0},
    "pretrain": {"epochs": 1, "batch_size": 64},
    "reward": {"kind": "property", "source": {"kind": "descriptor", "quantity": "n_elements"}},
    "service": {"mode": "in-process"},
    "finetune": {"steps": 2, "batch_size": 8},
    "evaluate": {"samples": 8, "nearest": False, "gallery": 1, "candidates": 5},
    "tracking": {"enabled": False},
}


def submit(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (place / "params.yaml").write_text(yaml.safe_dump(TINY))
    return subprocess.run(
        [sys.executable, "-m", "crystalforge.cli", "submit", *arguments, "--local", "--config", "params.yaml"],
        cwd=place, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_sweep_over_three_strengths_ends_in_one_report(tmp_path: Path) -> None:
    done = submit(tmp_path, "sweep", "--tau", "0.05", "--tau", "0.1", "--tau", "0.2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout[done.stdout.index("\n{") :])
    place = tmp_path / told["directory"]
    summary = json.loads((place / "compare" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "tau=0.05", "tau=0.1", "tau=0.2"]
    assert {model["n"] for model in summary["models"].values()} == {8}
    for label in ("tau=0.05", "tau=0.1", "tau=0.2"):
        judged = json.loads((place / f"{label.replace('=', '')}-seed0" / "evaluate" / "summary.json").read_text())
        assert summary["comparison"][label] == judged["comparison"]["tuned"], "each variant has its own figures"
    rows = list(csv.DictReader((place / "compare" / "variants.csv").open()))
    assert len({row["model_hash"] for row in rows}) == 3
    page = (place / "compare" / "report.html").read_text()
    assert page.count("tau=0.1") > 2
    assert told["reports"] == [str(Path(told["directory"]) / "compare" / "report.html")]
    (log,) = place.glob("pipeline/**/logs")
    with tarfile.open(log) as archive:
        names = set(archive.getnames())
    assert {"pretrain/stage.json", "tau0.2-seed0/finetune/metrics.jsonl", "pipeline.log"} <= names
    assert not any("model.safetensors" in name for name in names)


def test_a_failed_step_is_one_message_and_its_logs_are_kept(tmp_path: Path) -> None:
    done = submit(tmp_path, "discovery", "--set", "data.source={kind: cif-dir, path: absent}")
    assert done.returncode == 2
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
    (log,) = (tmp_path / "runs").glob("*/pipeline/**/logs")
    with tarfile.open(log) as archive:
        assert "error.json" in archive.getnames()
