"""All take part with the same budget, resumably."""

from __future__ import annotations

import pytest

from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.contest.config import ContestConfig
from crystalforge.rl.contest.contest import Ground, contest, learners
from crystalforge.rl.testing import ElementReward, ElementScreen

TUNING = FinetuneConfig(
    batch_size=30, learning_rate=2e-2, tau=0.02, monitor=MonitorConfig(max_gap=None, min_unique=None, max_kl=None)
)
CONTEST = ContestConfig(
    algorithms=("ppo", "rloo"), searches=("best_of_n", "mcmc"), taus=(5.0,), seeds=(0, 1),
    scored=180, judged=60, keep=20,
    settings={"rloo": {"learning_rate": 3e-2}},
)  # fmt: skip


def test_everybody_spends_the_same_and_learners_beat_the_base(tmp_path, base, cubic, oxide_reward):
    stranger = ElementReward(dict.fromkeys(range(5, 15), 1.0), name="stranger")
    ground = Ground(
        base, oxide_reward, cubic, tmp_path, is_known=lambda tokens: tokens.spacegroup == 225, held_out=stranger
    )
    found = list(contest(CONTEST, TUNING, ground))
    assert [o.label for o in found] == ["base", "ppo", "ppo-tau5.0", "rloo", "best_of_n", "mcmc"] * 2
    assert {o.scored for o in found if o.kind != "base"} == {180}
    # 5 spenders and 4 models judged, with each of 2 seeds
    assert oxide_reward.scored == 2 * (5 * 180 + 4 * 60)
    by = {(o.label, o.seed): o for o in found}
    for seed in (0, 1):
        assert by["base", seed].kl == pytest.approx(0, abs=1e-6)
        assert by["ppo", seed].reward > by["base", seed].reward + 0.1
        assert (by["ppo", seed].kl or 0) > (by["ppo-tau5.0", seed].kl or 0)
        assert by["best_of_n", seed].reward > by["base", seed].reward + 0.1
        assert by["best_of_n", seed].kl is None
        assert 0 < (by["base", seed].novel or 0) < 1
        assert by["base", seed].stable is None  # this reward knows no hull
        assert by["mcmc", seed].cpu_seconds > 0
        assert 0 < (by["base", seed].held_out or 0) < by["base", seed].reward
    assert stranger.scored == 2 * (4 * 60 + 20 + 30), "all that were judged, and the picked of two searches"
    again = list(contest(CONTEST, TUNING, ground))
    assert oxide_reward.scored == 2 * (5 * 180 + 4 * 60), "nothing is scored twice"
    assert again == found
    assert stranger.calls == 2 * 6


def test_an_algorithm_may_need_settings_of_its_own():
    settings = dict(learners(CONTEST, TUNING))
    assert [(name, s.tau, s.learning_rate) for name, s in settings.items()] == [
        ("ppo", 0.02, 2e-2),
        ("ppo-tau5.0", 5.0, 2e-2),
        ("rloo", 0.02, 3e-2),
    ]
    assert {(s.steps, s.max_scored) for s in settings.values()} == {(6, 180)}
    with pytest.raises(ValueError, match="twice"):
        ContestConfig(seeds=(1, 1))
    with pytest.raises(ValueError, match="none"):
        ContestConfig(algorithms=(), taus=(1.0,))


def test_the_rate_rises_to_its_value():
    from crystalforge.rl.learning import learning_rate

    config = FinetuneConfig(learning_rate=1e-4, warmup_steps=4)
    rates = [learning_rate(config, step) for step in range(6)]
    assert rates == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-4])
    assert learning_rate(FinetuneConfig(learning_rate=1e-4), 0) == 1e-4


def test_a_variant_takes_part_under_a_name_of_its_own(tmp_path, base, cubic, oxide_reward):
    surrogate = {"waves": 2, "batch_size": 60, "minibatch": 30, "spacegroup_rate": 1.0}
    config = ContestConfig(
        algorithms=(), searches=(), seeds=(0,), scored=180, judged=400,
        variants={"unscored": {"algorithm": "balance", "filter": True, "batch_size": 60, "surrogate": surrogate}},
    )  # fmt: skip
    ((label, settings),) = learners(config, TUNING)
    assert (label, settings.steps, settings.learning_rate) == ("unscored", 3, 2e-2)
    ground = Ground(base, oxide_reward, cubic, tmp_path, screen=ElementScreen())
    first, tuned = contest(config, TUNING, ground)
    assert (tuned.label, tuned.kind, tuned.scored) == ("unscored", "learner", 180)
    assert tuned.reward > first.reward + 0.1
    # What the groups cost is in the divergence: reward and L are of the law that was drawn from.
    assert tuned.objective == pytest.approx(tuned.reward - TUNING.tau * (tuned.kl or 0), abs=1e-9)
    for wrong in ("base", "ppo", "a/b"):
        with pytest.raises(ValueError, match="variants"):
            ContestConfig(variants={wrong: {}})
