"""Learning from crystals that nobody scored, in the loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.model.sampling.shares import TILT
from crystalforge.rewards.protocol import RewardUnavailable
from crystalforge.rl import journal
from crystalforge.rl.config import DriftConfig, FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.policy import UpdateHealth
from crystalforge.rl.testing import ElementReward, ElementScreen, FailingReward
from crystalforge.rl.waves import together

UNWATCHED = MonitorConfig(every=5, max_gap=None, min_unique=None, max_kl=None, max_worse=None)
WAVES = {"waves": 3, "batch_size": 60, "minibatch": 30, "spacegroup_rate": 0.2}
SMALL = {"algorithm": "balance", "filter": True, "batch_size": 30, "learning_rate": 5e-3, "checkpoint_every": 2}


def run(out, base, cubic, reward, *, steps: int = 4, heaviest: int = 100, seed: int = 1, **changes):
    settings = SMALL | {"surrogate": WAVES} | changes
    config = FinetuneConfig(steps=steps, monitor=UNWATCHED, **settings)
    return finetune(config, base, reward, cubic, out, seed=seed, screen=ElementScreen(heaviest))


def course(out) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_what_nobody_scored_costs_no_reward_call_and_is_not_in_the_record(tmp_path, base, cubic, oxide_reward):
    result = run(tmp_path, base, cubic, oxide_reward)
    assert result.scored == oxide_reward.scored == 120
    rows = course(tmp_path)
    assert [row["surrogate/known"] for row in rows] == [30, 60, 90, 120]
    assert [row["surrogate/waves"] for row in rows] == [0, 3, 3, 3]  # the first step has too few to guess from
    assert all(row["ratio/first_error"] == 0 for row in rows)
    assert all("surrogate/error" in row for row in rows[2:])
    assert "surrogate/error" not in rows[0]
    index = np.concatenate([scored.index for _, scored in journal.steps(tmp_path / "samples")])
    assert index.tolist() == list(range(len(index)))  # unscored ones are numbered apart


def test_the_choice_of_the_group_is_a_part_of_the_policy(tmp_path, base, cubic):
    """Rewards by space group, which a policy that is given its groups can do nothing about."""

    class OneGroup(ElementReward):
        def score(self, crystals):
            scores = super().score(crystals)
            scores.values[:] = [0.0 if c is not None and len(c) < 4 else -0.2 for c in crystals]
            return scores

    run(tmp_path / "moved", base, cubic, OneGroup({}), steps=6)
    run(tmp_path / "still", base, cubic, OneGroup({}), steps=6, surrogate=WAVES | {"spacegroup_rate": 0.0})
    moved, still = load_model(tmp_path / "moved/model").info, load_model(tmp_path / "still/model").info
    assert TILT not in still
    np.testing.assert_array_equal(still["spacegroup_weights"], cubic / cubic.sum())
    shares = np.array(moved["spacegroup_weights"])
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0).tolist() == (cubic > 0).tolist()
    expected = cubic * np.exp(np.array(moved[TILT]))
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=1e-12)
    last = course(tmp_path / "moved")[-1]
    some, law = cubic > 0, cubic / cubic.sum()
    divergence = (shares[some] * np.log(shares[some] / law[some])).sum()
    assert last["spacegroups/kl"] == pytest.approx(divergence)
    assert divergence > 1e-4
    assert course(tmp_path / "still")[-1]["spacegroups/kl"] == 0


def test_kl_and_objective_count_the_choice_of_the_group(tmp_path, base, cubic, oxide_reward, monkeypatch):
    """With a policy that learns nothing but the shares, the whole KL is that of the shares."""
    from crystalforge.rl import waves

    still = UpdateHealth(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0, 0, False)
    monkeypatch.setattr(waves, "improve", lambda *_, **__: still)
    run(tmp_path, base, cubic, oxide_reward, steps=3, batch_size=200)
    rows, (*_, (_, scored)) = course(tmp_path), journal.steps(tmp_path / "samples")
    # After two steps the shares are those with which the third step's crystals were drawn.
    state = json.loads((tmp_path / "checkpoints/step-0000002/state.json").read_text())
    tilt = np.array(state["spacegroups"]["tilt"])
    law = cubic * np.exp(tilt)
    ratio, some = np.zeros(230), cubic > 0
    ratio[some] = np.log(law[some] / law.sum()) - np.log(cubic[some] / cubic.sum())
    groups = scored.tokens.spacegroup.astype(int) - 1
    assert rows[2]["kl/base"] == pytest.approx(ratio[groups].mean(), abs=1e-5)
    shaped = scored.scores.values - 0.1 * ratio[groups]
    assert rows[2]["objective"] == pytest.approx(shaped.mean(), abs=1e-5)


def test_it_learns_more_from_the_same_judged_crystals(tmp_path, base, cubic):
    found = {}
    for name, surrogate in (("with", WAVES | {"waves": 6}), ("without", None)):
        rewards = []
        for seed in (1, 2):
            reward, out = ElementReward(dict.fromkeys(range(5, 25), 1.0)), tmp_path / f"{name}{seed}"
            run(out, base, cubic, reward, steps=6, surrogate=surrogate, seed=seed, lowest=None)
            rewards.append(course(out)[-1]["objective"] - course(out)[0]["objective"])
        found[name] = np.mean(rewards)
    assert found["with"] > found["without"] > 0


def test_a_session_that_goes_on_ends_with_the_same_bits(tmp_path, base, cubic):
    whole = run(tmp_path / "whole", base, cubic, ElementReward({8: 1.0}), steps=5)
    reward = FailingReward({8: 1.0})
    reward.away_after = 3
    with pytest.raises(RewardUnavailable):
        run(tmp_path / "cut", base, cubic, reward, steps=5)
    reward.away_after = None
    cut = run(tmp_path / "cut", base, cubic, reward, steps=5)
    first, second = load_model(cut.model_dir), load_model(whole.model_dir)
    assert weights_hash(first.model) == weights_hash(second.model)
    assert first.info["spacegroup_weights"] == second.info["spacegroup_weights"]
    assert reward.scored == 150


@pytest.mark.parametrize(
    "changes",
    [{"algorithm": "ppo"}, {"filter": False}, {"drift": DriftConfig(compositions=1.0)}],
    ids=["ppo", "unfiltered", "drift"],
)
def test_what_it_cannot_go_with_is_refused(changes):
    with pytest.raises(ValidationError, match="surrogate"):
        FinetuneConfig(**SMALL | {"surrogate": WAVES} | changes)


def test_the_health_of_several_updates_is_weighed_by_their_strides():
    one = UpdateHealth(1.0, 0.0, 0.1, 0.2, 1.5, 3.0, 1, 0, False)
    three = UpdateHealth(5.0, 0.5, 0.3, 0.0, 1.2, 1.0, 3, 2, True)
    found = together([one, three])
    means = (found.loss, found.approx_kl, found.clip_fraction, found.gradient_norm)
    assert means == pytest.approx((4.0, 0.25, 0.05, 1.5))
    assert (found.first_ratio_error, found.largest_ratio, found.optimizer_steps) == (0.0, 1.5, 4)
    assert (found.skipped_steps, found.stopped_early) == (2, True)
