"""The contest's figure: attained shares at the right number of scored crystals, from what the runs logged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crystalforge.config import from_sections
from crystalforge.rewards import tilted
from crystalforge.rl.contest.contest import Outcome
from crystalforge.studies import contest as stage
from crystalforge.studies.efficiency import Attainable, courses

TAU = 0.1
REWARDS = {0: np.array([-1.0, -0.2, -1.4, 0.1]), 1: np.array([-0.9, -2.0, 0.0, -0.5])}  # of the base, by seed


def outcome(label: str, seed: int, reward: float, objective: float, optimum: float | None = None) -> Outcome:
    kind = "base" if label == "base" else "learner"
    return Outcome(
        label, kind, seed, TAU, 4, reward, 0.9, 0.2, 0.0, None, None, 100 * (kind != "base"), 3.0,
        objective=objective, filtered=objective + 0.2, optimum=optimum,
    )  # fmt: skip


def outcomes() -> list[Outcome]:
    found = []
    for seed, rewards in REWARDS.items():
        best = tilted.optimum(rewards, TAU).value
        found.append(outcome("base", seed, float(rewards.mean()), float(rewards.mean()), best))
        found.append(outcome("rloo", seed, -0.5, -0.6 + 0.1 * seed))
    return found


def test_what_is_attainable_is_that_of_all_seeds_crystals_together():
    ground = Attainable.of(outcomes(), TAU)
    everything = np.concatenate(list(REWARDS.values()))
    assert ground is not None
    assert ground.best == pytest.approx(tilted.optimum(everything, TAU).value)
    assert ground.start == pytest.approx(everything.mean())
    assert (ground.share(ground.start), ground.share(ground.best)) == (0, pytest.approx(1))
    assert Attainable.of([o for o in outcomes() if o.label != "base"], TAU) is None


def write(folder: Path) -> None:
    """Ten steps of ten crystals, L rising from -1 by 0.04 a step; filtered 0.1 more, where anything was refused."""
    for seed in REWARDS:
        place = folder / f"rloo-seed{seed}"
        place.mkdir(parents=True)
        rows = [
            {"step": k, "objective": -1 + 0.04 * k + 0.01 * seed, "budget/scored": 10.0 * (k + 1)}
            | ({"filtered/objective": -0.9 + 0.04 * k} if k < 5 else {})
            for k in range(10)
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_batch_speaks_of_the_policy_before_it_was_learned_from(tmp_path: Path):
    write(tmp_path)
    ground = Attainable.of(outcomes(), TAU)
    assert ground is not None
    course = courses(tmp_path, outcomes(), ground, TAU, 100)["rloo"]
    assert [at for at, _ in course["objective"]] == [*range(0, 100, 10), 100]
    values = np.array([shares for _, shares in course["objective"]])
    assert values.shape == (11, 2)
    assert values[3] == pytest.approx([ground.share(-0.88), ground.share(-0.87)])
    assert values[-1] == pytest.approx([ground.share(-0.6), ground.share(-0.5)]), "fresh crystals at the end"
    cut = np.array([shares for _, shares in course["filtered/objective"]])
    assert cut[4] == pytest.approx([ground.share(-0.74)] * 2)
    assert cut[5] == pytest.approx(values[5]), "where none is refused the filtered law is the law"
    coarse = courses(tmp_path, outcomes(), ground, TAU, 1000)["rloo"]["objective"]
    assert [at for at, _ in coarse] == [45, 100], "a tenth of the budget is one point"


def test_the_figure_and_the_table_hold_the_shares(tmp_path: Path):
    write(tmp_path)
    config = from_sections(
        finetune={"tau": TAU}, contest={"algorithms": ["rloo"], "searches": [], "seeds": [0, 1], "scored": 100}
    )
    path = tmp_path / "figure.png"
    assert stage.draw(config, outcomes(), tmp_path, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not stage.draw(config, [o for o in outcomes() if o.label != "base"], tmp_path, tmp_path / "none.png")
    summary = stage.summarise(outcomes())
    ground = Attainable.of(outcomes(), TAU)
    assert ground is not None
    assert summary["rloo"]["attained"]["value"] == pytest.approx(ground.share(-0.55))
    assert summary["base"]["attained"]["value"] == pytest.approx(0, abs=1e-12)
    shown = f"{ground.share(-0.55):.0%} | {ground.share(-0.35):.0%} | 100 |"
    assert shown in stage.table(summary, config, ["judge@1"])
    assert math.isfinite(summary["rloo"]["attained_filtered"]["low"])
