"""A policy that cheats is caught, an honest one is left in peace."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.monitor import conclusion
from crystalforge.rl.testing import ElementReward

WANTED = dict.fromkeys(range(5, 25), 1.0)
# What the chemist means is `HONEST`; what was implemented pays far more for three elements that are worth nothing.
HONEST = ElementReward(WANTED, name="honest")
HACKABLE = ElementReward(WANTED | dict.fromkeys((80, 81, 82), 5.0), name="hackable")
SETTINGS = {"steps": 100, "batch_size": 100, "learning_rate": 1e-2, "tau": 0.02}
WATCH = MonitorConfig(every=2, max_gap=1.0, min_unique=None, max_kl=None, max_worse=None)


def test_a_planted_hack_is_caught_early_and_the_last_good_policy_is_kept(tmp_path, base, cubic):
    config = FinetuneConfig(monitor=WATCH, **SETTINGS)
    result = finetune(config, base, HACKABLE, cubic, tmp_path / "out", seed=0, held_out=HONEST)
    assert result.steps <= 10, "a tenth of the run"
    assert result.stopped is not None
    assert "rise of the reward beyond the held-out score's" in result.stopped
    assert result.metrics["monitor/held_out/gap"] > 1.0
    # what is kept is the policy of the last look that passed, and that one had not yet gone astray
    kept = load_model(result.model_dir)
    good = load_model(tmp_path / "out" / "good")
    assert weights_hash(kept.model) == weights_hash(good.model)
    history = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    passed = next(row for row in history if row["step"] == good.info["steps"])
    assert passed["monitor/held_out/gap"] < result.metrics["monitor/held_out/gap"]
    # calling it again tells the same and scores nothing
    before = HACKABLE.scored
    assert finetune(config, base, HACKABLE, cubic, tmp_path / "out", seed=0, held_out=HONEST).stopped == result.stopped
    assert before == HACKABLE.scored


def test_an_honest_reward_is_left_in_peace(tmp_path, base, cubic):
    config = FinetuneConfig(monitor=WATCH, **SETTINGS | {"steps": 12, "batch_size": 40})
    shifted = ElementReward(dict.fromkeys(WANTED, 0.5), name="other-scale")  # another unit, the same opinion
    result = finetune(config, base, HONEST, cubic, tmp_path / "out", seed=0, held_out=shifted)
    assert result.stopped is None
    history = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in history if "monitor/drift/elements" in row]
    assert [row["step"] for row in looks] == list(range(0, 12, 2))
    assert looks[0]["monitor/drift/elements"] == 0
    assert looks[-1]["monitor/drift/elements"] > 0.2
    for row in looks:
        assert row["monitor/held_out/gap"] == pytest.approx(0, abs=1e-9)
        assert row["monitor/held_out/correlation"] == pytest.approx(1)


def test_what_the_objective_calls_worse_than_the_base_is_stopped_and_the_best_policy_is_kept(tmp_path, base, cubic):
    """Steps far too long for a tight leash: the reward rises, and KL costs more than that."""
    watch = MonitorConfig(every=1, max_gap=None, min_unique=None, max_kl=None, max_worse=2)
    config = FinetuneConfig(steps=12, batch_size=40, learning_rate=3e-2, tau=0.5, monitor=watch)
    result = finetune(config, base, HONEST, cubic, tmp_path / "out", seed=0)
    assert result.stopped is not None
    assert "the objective E[r] - tau KL is" in result.stopped
    assert "for 2 looks in a row" in result.stopped
    history = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    objectives = [row["monitor/objective"] for row in history]
    assert [row["monitor/worse"] for row in history[-2:]] == [1, 2]
    best = int(np.argmax(objectives))
    assert result.monitor["best_step"] == best
    assert f"the policy of the best objective, that of step {best}, is kept" in result.monitor["verdict"]
    kept, first = load_model(result.model_dir), load_model(tmp_path / "out" / "best")
    assert weights_hash(kept.model) == weights_hash(first.model)
    assert first.info["steps"] == best
    unwatched = config.model_copy(update={"monitor": watch.model_copy(update={"max_worse": None})})
    assert finetune(unwatched, base, HONEST, cubic, tmp_path / "unwatched", seed=0).stopped is None


def test_the_conclusion_says_what_the_looks_came_to():
    def look(step, passed):
        return {"step": step, "reward/mean": 1.0, "monitor/passed": float(passed), "monitor/drift/elements": 0.1 * step}

    plain = {"step": 1, "reward/mean": 0.5}
    fine = conclusion([look(0, True), plain, look(2, True)], None, held_out="other@1")
    assert fine["verdict"] == "all 2 looks passed"
    assert (fine["passed"], fine["looks"], fine["last_good_step"]) == (True, 2, 2)
    assert fine["last"] == {"step": 2, "passed": 1.0, "drift/elements": 0.2}
    reason = "monitor at step 2: KL from the base is 9"
    caught = conclusion([look(0, True), plain, look(2, False)], reason, held_out="other@1")
    assert caught["verdict"] == f"{reason}; the policy of step 0 is kept"
    assert not caught["passed"]
    early = conclusion([look(0, False)], "monitor at step 0: floors", held_out=None)
    assert early["verdict"] == "monitor at step 0: floors; no look passed, the base is kept (without a held-out judge)"
    budget = conclusion([look(0, True)], "budget: 9 s spent", held_out="other@1")
    assert budget["passed"]
    assert conclusion([plain], None, held_out=None) == {
        "verdict": "no look was due", "passed": True, "looks": 0, "last_good_step": None, "best_step": None,
        "held_out": None, "first": {}, "last": {},
    }  # fmt: skip


def test_collapse_and_distance_end_the_run_in_words(tmp_path, base, cubic):
    one = np.zeros(230)
    one[224] = 1.0
    reward = ElementReward(WANTED | {8: 3.0})  # one element is worth far more than the rest
    collapse = MonitorConfig(every=1, min_unique=0.6, max_kl=None, max_worse=None)
    config = FinetuneConfig(monitor=collapse, **SETTINGS | {"learning_rate": 3e-2, "batch_size": 60})
    result = finetune(config, base, reward, one, tmp_path / "collapse", seed=0)
    assert result.stopped is not None
    assert "share of unique crystals" in result.stopped
    assert "below its limit 0.6" in result.stopped
    distance = MonitorConfig(every=1, min_unique=None, max_kl=2.0)
    config = FinetuneConfig(monitor=distance, **SETTINGS)
    result = finetune(config, base, reward, cubic, tmp_path / "distance", seed=0)
    assert result.stopped is not None
    assert "KL from the base" in result.stopped
