"""Killed at any instant and started again, a run ends as if it had never been killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from crystalforge.model.checkpoint import load_model, weights_hash

WORKER = Path(__file__).with_name("resume_worker.py")
STEPS, BATCH = 14, 20


def start(base: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(base), str(out), str(STEPS), "0.02"],
        env=environment,
        stderr=subprocess.PIPE,
    )


def trajectory(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(("seconds/", "budget/seconds"))}
        for line in lines
    ]


def test_sigkill_at_random_instants_changes_nothing(tmp_path, base):
    whole = start(base, tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.stderr.read().decode()  # type: ignore[union-attr]
    rng = random.Random(11)
    kills = 0
    for _ in range(60):
        begun = len(list((tmp_path / "killed").glob("samples/step-*")))
        process = start(base, tmp_path / "killed")
        # wait until it works, then strike within the next few steps
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "killed").glob("samples/step-*"))) > begun:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 3, "the run was too quick to be killed"
    assert process.returncode == 0
    first, second = (load_model(tmp_path / name / "model").model for name in ("whole", "killed"))
    assert weights_hash(first) == weights_hash(second)
    assert trajectory(tmp_path / "whole") == trajectory(tmp_path / "killed")
    scored = (tmp_path / "killed" / "scored.log").read_text().split()
    # a kill between the answer and its record costs one batch at most
    assert len(scored) <= STEPS + kills
    assert len(list((tmp_path / "killed" / "samples").iterdir())) == STEPS
