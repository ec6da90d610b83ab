"""Variants into one comparison: seeds pooled by their spread, models matched by what an evaluation judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import from_sections
from crystalforge.evaluation.metrics import statistics
from crystalforge.studies.compare import compare

CONFIG = from_sections(tracking={"enabled": False})


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}


def variant(
    root: Path, tau: float, seed: int, reward: float, protocol: str = "p", algorithm: str = "ppo"
) -> tuple[Path, Path]:
    """What `finetune` and `evaluate` leave, as far as the comparison reads it."""
    content = f"{tau}-{seed}" if algorithm == "ppo" else f"{algorithm}-{tau}-{seed}"
    tuned, evaluation = root / f"tuned-{content}", root / f"evaluation-{content}"
    for place in (tuned, evaluation):
        place.mkdir(parents=True)
    settings = {"seed": seed, "finetune": {"algorithm": algorithm, "tau": tau}}
    (tuned / "stage.json").write_text(json.dumps({"content": content, "config": settings, "inputs": {}}))
    (tuned / "metrics.jsonl").write_text('{"step": 1, "reward/mean": -1.0}\n')
    (evaluation / "stage.json").write_text(json.dumps({"content": f"e{content}", "inputs": {"tuned": content}}))
    models = {
        label: {"n": 50, "metrics": {"mean_reward": figure(value), "unique_rate": figure(0.9)}, "status": {"ok": 50}}
        for label, value in (("base", 0.0), ("tuned", reward))
    }
    summary = {
        "protocol": {"name": protocol, "stable_at": 0.1},
        "models": models,
        "baseline": "base",
        "comparison": {"tuned": {"mean_reward": figure(reward)}},
    }
    (evaluation / "summary.json").write_text(json.dumps(summary))
    return tuned, evaluation


def test_seeds_become_one_row_with_the_interval_of_their_spread(tmp_path: Path) -> None:
    rewards = {(0.3, 0): 1.0, (0.1, 0): 2.0, (0.1, 1): 2.2, (0.1, 2): 2.7} | {(tau, 0): 1.0 for tau in (0.4, 0.5, 0.6)}
    made = [variant(tmp_path, tau, seed, reward) for (tau, seed), reward in rewards.items()]
    # The engine promises no order of what it collects.
    record = compare(CONFIG, [tuned for tuned, _ in reversed(made)], [e for _, e in made], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "tau=0.1", "tau=0.3", "tau=0.4", "tau=0.5", "tau=0.6"]
    pooled = summary["models"]["tau=0.1"]
    assert (pooled["n"], pooled["experiments"], pooled["status"]) == (150, 3, {"ok": 150})
    expected = statistics.mean(np.array([2.0, 2.2, 2.7]))
    assert pooled["metrics"]["mean_reward"]["value"] == pytest.approx(expected.value)
    assert pooled["metrics"]["mean_reward"]["low"] == pytest.approx(expected.low)
    assert summary["models"]["tau=0.3"]["metrics"]["mean_reward"] == figure(1.0), "one seed keeps its own interval"
    assert record["metrics"]["tau=0.3.mean_reward"] == 1.0
    lines = (tmp_path / "out" / "variants.csv").read_text().splitlines()
    assert lines[0] == "algorithm,tau,seed,model_hash,mean_reward,unique_rate"
    assert lines[1] == "ppo,0.1,0,0.1-0,2,0.9"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "7 fine-tunings" in page
    for (tau, seed), _ in rewards.items():  # more than a figure has colours
        # the last figure holds one course, and needs no names
        assert tau == 0.6 or f"finetune tau={tau:g} seed {seed}: mean reward" in page
    assert page.count('<div id="figure-') == 3
    assert "<script src" not in page


def test_several_algorithms_are_told_apart(tmp_path: Path) -> None:
    made = [variant(tmp_path, 0.1, seed, 1.0 + seed, algorithm=name) for name in ("rloo", "ppo") for seed in (0, 1)]
    compare(CONFIG, [tuned for tuned, _ in made], [evaluation for _, evaluation in made], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "ppo tau=0.1", "rloo tau=0.1"]
    assert summary["models"]["rloo tau=0.1"]["experiments"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "finetune rloo tau=0.1 seed 1: mean reward" in page


def test_an_evaluation_of_another_model_and_another_protocol_are_refused(tmp_path: Path) -> None:
    first, second = variant(tmp_path, 0.1, 0, 1.0), variant(tmp_path, 0.2, 0, 1.0, protocol="q")
    with pytest.raises(InputError, match="none of those given"):
        compare(CONFIG, [first[0]], [second[1]], tmp_path / "a")
    with pytest.raises(InputError, match="different protocols"):
        compare(CONFIG, [first[0], second[0]], [first[1], second[1]], tmp_path / "b")
