"""The script for a borrowed accelerator, whole, with a tiny network on the CPU.

It takes half a minute, since it starts three benchmarks as programs of their own: on the accelerator there is one try.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from crystalforge.model.checkpoint import load_model

ROOT = Path(__file__).parents[3]
BENCHMARKS = {"train": "samples_per_s", "ppo": "seconds_per_step", "sampler": "structures_per_s"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "accelerator.py"), str(ROOT / "recipes" / "mp-start.yaml")]
    nothing = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *options], capture_output=True, text=True, env=nothing)


def test_a_trial_brings_back_weights_and_the_figures_of_every_benchmark(tmp_path: Path, make_store) -> None:
    make_store(48, 8, name="data/store")
    out = tmp_path / "out"
    done = run(
        str(tmp_path / "data"), str(out), "--tiny", "--device", "cpu", "--minutes", "0.05", "--batch", "8"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(done.stdout)
    for name, figure in BENCHMARKS.items():
        assert summary["benchmarks"][name].get(figure, 0) > 0, summary["benchmarks"][name]
        assert json.loads((out / "benchmarks" / f"{name}.json").read_text()) == summary["benchmarks"][name]
    assert math.isfinite(summary["training"]["val/nll"])
    loaded = load_model(out / "base" / "model")
    assert loaded.model.config.width == 16
    assert loaded.info["config"]["optimizer"]["precision"] == "bfloat16"
    assert loaded.info["steps"] == summary["training"]["steps"] >= 1
    assert sorted(place.name for place in out.iterdir()) == ["base", "benchmarks", "summary.json"]
    assert not (out / "base" / "snapshots").exists(), "what serves to resume need not travel"


def test_without_a_gpu_it_says_so_at_once(tmp_path: Path) -> None:
    done = run(str(tmp_path), str(tmp_path / "out"))
    assert done.returncode != 0
    assert "there is no GPU that PyTorch can use" in done.stderr
    assert not (tmp_path / "out").exists()
