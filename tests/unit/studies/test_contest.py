"""The table says what the outcomes say, and lands where the page wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import from_sections
from crystalforge.evaluation.metrics import statistics
from crystalforge.rl.contest.contest import Outcome
from crystalforge.studies import contest as stage

CONFIG = from_sections(contest={"algorithms": ["ppo", "rloo"], "searches": ["mcmc"], "taus": [0.2], "seeds": [0, 1, 2]})


def outcome(label: str, seed: int, reward: float, kl: float | None = 0.0, tau: float = 0.1) -> Outcome:
    kind = "base" if label == "base" else "search" if kl is None else "learner"
    scored = 100 * (kind != "base")
    return Outcome(label, kind, seed, tau, 10, reward, 0.9, 0.2, kl, 0.05, 0.8, scored, 3.0, held_out=reward / 2)


def outcomes() -> list[Outcome]:
    found = []
    for seed, base in enumerate((-1.0, -1.2, -1.1)):
        found += [
            outcome("base", seed, base),
            outcome("ppo", seed, base + 0.30 + 0.01 * seed, kl=2.0),
            outcome("ppo-tau0.2", seed, base + 0.1, kl=1.0, tau=0.2),
            outcome("rloo", seed, base + (0.5 if seed else -0.5), kl=3.0),
            outcome("mcmc", seed, base - 0.1 - 0.01 * seed, kl=None),
        ]
    return found


def test_gains_are_differences_from_the_base_of_the_same_seed() -> None:
    summary = stage.summarise(outcomes())
    assert list(summary) == ["base", "ppo", "ppo-tau0.2", "rloo", "mcmc"]
    expected = statistics.mean(np.array([0.30, 0.31, 0.32]))
    gain = summary["ppo"]["gain"]
    assert (gain["value"], gain["low"]) == (pytest.approx(expected.value), pytest.approx(expected.low))
    assert summary["base"]["gain"] is None
    assert summary["mcmc"]["kl"] is None
    assert summary["ppo"]["judged"] == 30


def test_the_table_gives_a_verdict_on_each_and_orders_the_strengths() -> None:
    text = stage.table(stage.summarise(outcomes()), CONFIG, ["judge@1"])
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert (
        "+0.310 [+0.285, +0.335] | better | +0.155 [+0.143, +0.167] | 5.0% | 90.0% | 80.0% | 2.00 |  |  | 100 | 3 |"
        in rows["ppo"]
    )
    assert "| unclear |" in rows["rloo"]
    assert "| worse |" in rows["mcmc"]
    assert list(rows)[-2:] == ["tau = 0.1", "tau = 0.2"]
    assert "the reward falls (-0.790, -1.000) and the KL falls (2.000, 1.000)" in text
    assert text.endswith("Not shown to differ from the base: rloo.\n")


def test_a_page_without_a_place_for_the_table_is_refused_before_any_work(tmp_path: Path) -> None:
    for name in ("data", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text('{"content": "c"}')
    page = tmp_path / "page.md"
    page.write_text("# Words\n")
    with pytest.raises(InputError, match="no place for the table"):
        stage.contest(CONFIG, tmp_path / "data", tmp_path / "base", tmp_path / "out", page)
    assert not (tmp_path / "out").exists()
