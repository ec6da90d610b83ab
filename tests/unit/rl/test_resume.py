"""Killed at any instant and started again, a run ends as if it had never been killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalforge.model.checkpoint import load_model, weights_hash

WORKER = Path(__file__).with_name("resume_worker.py")
STEPS = 8


def trajectory(out: Path) -> list[dict[str, float]]:
    """The metrics of every step, without clocks."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.parametrize("algorithm", ["ppo", "balance", "surrogate"])
def test_sigkill_at_random_instants_changes_nothing(tmp_path, base, algorithm):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    worker = subprocess.run(
        [sys.executable, str(WORKER), str(base), str(tmp_path), str(STEPS), algorithm],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert worker.returncode == 0, worker.stderr
    kills = int(worker.stdout.split()[-1])
    assert kills >= 3, "the run was too quick to be killed"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first, second = (load_model(out / "model").model for out in (whole, killed))
    assert weights_hash(first) == weights_hash(second)
    assert trajectory(whole) == trajectory(killed)
    assert [row["step"] for row in trajectory(killed)] == list(range(STEPS))
    # a kill between the reward's answer and its record costs that one batch
    assert len((killed / "scored.log").read_text().split()) <= STEPS + kills
    assert len((whole / "scored.log").read_text().split()) == STEPS
    assert len(list((killed / "samples").glob("step-*.parquet"))) == STEPS  # a kill may leave a temporary file
