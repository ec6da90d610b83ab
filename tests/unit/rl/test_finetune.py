"""The whole loop on a tiny model with a reward that costs nothing."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.checkpoint import load_model, save_model, weights_hash
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import RewardUnavailable
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward

# The sampler and the likelihood compute the same float32 network in another order.
SAMPLER_TOLERANCE = 1e-2

UNWATCHED = MonitorConfig(every=5, max_gap=None, min_unique=None, max_kl=None, max_worse=None)
FAST = {"batch_size": 40, "learning_rate": 1e-2, "tau": 0.02, "monitor": UNWATCHED, "checkpoint_every": 5}


def rows(out) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["ppo", "balance", "reinforce", "rloo", "grpo", "dpo", "sft"])
def test_every_algorithm_raises_the_reward(tmp_path, base, cubic, oxide_reward, algorithm):
    steps = 16 if algorithm in ("reinforce", "rloo") else 12
    # one optimiser step per batch, or none for bad crystals: a longer stride
    rate = 2e-2 if algorithm in ("reinforce", "rloo", "sft") else 1e-2
    settings = FAST | {"learning_rate": rate}
    config = FinetuneConfig(algorithm=algorithm, steps=steps, keep_component="cost", keep_below=-0.3, **settings)
    seen: list[int] = []
    result = finetune(
        config,
        base,
        oxide_reward,
        cubic,
        tmp_path / "out",
        seed=1,
        on_metrics=lambda step, metrics: seen.append(step),
    )
    history = rows(tmp_path / "out")
    before = np.mean([row["reward/mean"] for row in history[:3]])
    after = np.mean([row["reward/mean"] for row in history[-3:]])
    assert after > before + 0.2, [round(row["reward/mean"], 2) for row in history]
    assert seen == list(range(steps))
    assert result.steps == steps
    assert result.scored == oxide_reward.scored == steps * 40
    assert result.stopped is None
    assert all(row["ratio/first_error"] == 0.0 for row in history if "ratio/first_error" in row)
    assert all(row["sampler/log_prob_error"] < SAMPLER_TOLERANCE for row in history)
    assert history[0]["kl/base"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["kl/base"] > 1
    assert 0 <= history[-1].get("clip/fraction", 0) <= 1
    trained = load_model(result.model_dir)
    assert weights_hash(trained.model) != weights_hash(load_model(base).model)
    assert trained.info["identity"]["reward"]["name"] == "element"
    # `sample` asks for space groups as the run did.
    assert trained.info["spacegroup_weights"] == pytest.approx(cubic / cubic.sum())
    recorded = list(journal.steps(tmp_path / "out" / "samples"))
    assert [step for step, _ in recorded] == list(range(steps))
    assert np.concatenate([scored.index for _, scored in recorded]).tolist() == list(range(steps * 40))


def test_a_larger_tau_keeps_the_policy_closer_to_the_base(tmp_path, base, cubic, oxide_reward):
    ends = []
    for tau in (0.02, 0.5, 5.0):
        config = FinetuneConfig(steps=10, **FAST | {"tau": tau})
        finetune(config, base, oxide_reward, cubic, tmp_path / str(tau), seed=1)
        last = rows(tmp_path / str(tau))[-3:]
        ends.append([np.mean([row[name] for row in last]) for name in ("reward/mean", "kl/base")])
    reward, kl = np.array(ends).T
    assert reward[0] > reward[1] > reward[2]
    assert kl[0] > kl[1] > kl[2]


def test_space_groups_asked_for_are_the_only_ones_drawn(tmp_path, base, cubic, oxide_reward):
    config = FinetuneConfig(steps=1, spacegroups=(225,), **FAST)
    finetune(config, base, oxide_reward, cubic, tmp_path / "out", seed=1)
    ((_, scored),) = journal.steps(tmp_path / "out" / "samples")
    assert set(scored.tokens.spacegroup.tolist()) == {225}
    other = FinetuneConfig(steps=1, spacegroups=(62, 14), **FAST)  # not among the weights: the wish counts
    finetune(other, base, oxide_reward, cubic, tmp_path / "other", seed=1)
    ((_, scored),) = journal.steps(tmp_path / "other" / "samples")
    assert set(scored.tokens.spacegroup.tolist()) == {14, 62}


def test_a_budget_ends_the_run_and_may_be_raised(tmp_path, base, cubic, oxide_reward):
    config = FinetuneConfig(steps=10, max_scored=100, **FAST)
    result = finetune(config, base, oxide_reward, cubic, tmp_path / "out", seed=1)
    assert result.scored == 80
    assert result.stopped is not None
    assert "max_scored 100" in result.stopped
    again = finetune(config, base, oxide_reward, cubic, tmp_path / "out", seed=1)
    assert (again.scored, oxide_reward.scored) == (80, 80)
    more = config.model_copy(update={"max_scored": 160})
    result = finetune(more, base, oxide_reward, cubic, tmp_path / "out", seed=1)
    assert (result.scored, oxide_reward.scored) == (160, 160)
    whole = finetune(FinetuneConfig(steps=4, **FAST), base, oxide_reward, cubic, tmp_path / "whole", seed=1)
    assert weights_hash(load_model(result.model_dir).model) == weights_hash(load_model(whole.model_dir).model)


class Failing(ElementReward):
    """Goes away after a number of calls, until told otherwise."""

    away_after: int | None = None

    def score(self, crystals):
        if self.away_after is not None and self.calls >= self.away_after:
            raise RewardUnavailable("server at localhost does not answer")
        return super().score(crystals)


def test_a_reward_that_goes_away_loses_nothing(tmp_path, base, cubic):
    config = FinetuneConfig(steps=6, **FAST)
    reward = Failing({8: 1.0})
    reward.away_after = 3
    with pytest.raises(RewardUnavailable):
        finetune(config, base, reward, cubic, tmp_path / "out", seed=1)
    assert reward.scored == 120
    reward.away_after = None
    result = finetune(config, base, reward, cubic, tmp_path / "out", seed=1)
    assert reward.scored == 240
    whole = finetune(config, base, ElementReward({8: 1.0}), cubic, tmp_path / "whole", seed=1)
    assert weights_hash(load_model(result.model_dir).model) == weights_hash(load_model(whole.model_dir).model)
    assert [row["step"] for row in rows(tmp_path / "out")] == list(range(6))


@pytest.mark.parametrize("harm", ["truncate", "flip", "missing", "all"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, base, cubic, caplog, harm):
    config = FinetuneConfig(steps=4, **FAST | {"checkpoint_every": 2})
    whole = finetune(config, base, ElementReward({8: 1.0}), cubic, tmp_path / "whole", seed=1)
    reward = Failing({8: 1.0})
    reward.away_after = 4
    longer = config.model_copy(update={"steps": 5})
    with pytest.raises(RewardUnavailable):
        finetune(longer, base, reward, cubic, tmp_path / "out", seed=1)
    found = sorted((tmp_path / "out" / "checkpoints").iterdir())
    assert len(found) == 2
    for path in found if harm == "all" else found[-1:]:
        target = path / ("optimizer.safetensors" if harm == "truncate" else "policy.safetensors")
        content = bytearray(target.read_bytes())
        if harm == "truncate":
            target.write_bytes(content[:-100])
        elif harm == "missing":
            target.unlink()
        else:
            content[len(content) // 2] ^= 1
            target.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        result = finetune(config, base, reward, cubic, tmp_path / "out", seed=1)
    assert "is damaged" in caplog.text
    assert str(found[-1]) in caplog.text
    assert reward.scored == 160  # nothing was scored twice: the journal holds it
    assert weights_hash(load_model(result.model_dir).model) == weights_hash(load_model(whole.model_dir).model)


def test_another_base_reward_configuration_or_seed_is_refused_with_both_values(tmp_path, base, cubic, oxide_reward):
    config = FinetuneConfig(steps=1, **FAST)
    finetune(config, base, oxide_reward, cubic, tmp_path / "out", seed=1)
    torch.manual_seed(9)
    save_model(tmp_path / "base2", CrystalFormer(load_model(base).model.config), info={})
    hashes = [weights_hash(load_model(tmp_path / name).model) for name in ("base", "base2")]
    longer = config.model_copy(update={"steps": 2})
    with pytest.raises(InputError, match=f"base = '{hashes[0]}'.*'{hashes[1]}'"):
        finetune(longer, tmp_path / "base2", oxide_reward, cubic, tmp_path / "out", seed=1)
    with pytest.raises(InputError, match=r"seed = 1 .* 2"):
        finetune(longer, base, oxide_reward, cubic, tmp_path / "out", seed=2)
    with pytest.raises(InputError, match=r"config\.tau = 0\.02 .* 0\.5"):
        finetune(longer.model_copy(update={"tau": 0.5}), base, oxide_reward, cubic, tmp_path / "out", seed=1)
    other = ElementReward({1: 1.0})
    with pytest.raises(InputError, match=f"{oxide_reward.version.digest}.*{other.version.digest}"):
        finetune(longer, base, other, cubic, tmp_path / "out", seed=1)
    with pytest.raises(InputError, match="space-group weights"):
        finetune(config, base, oxide_reward, cubic * 0, tmp_path / "new", seed=1)


def test_sft_names_the_components_when_the_one_asked_for_is_absent(tmp_path, base, cubic, oxide_reward):
    config = FinetuneConfig(algorithm="sft", steps=1, **FAST)
    with pytest.raises(InputError, match=r"no component 'e_above_hull'; it has \['cost'\]"):
        finetune(config, base, oxide_reward, cubic, tmp_path / "out", seed=1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"spacegroups": (0,)}, "1 to 230"),
        ({"algorithm": "grpo", "batch_size": 25, "group_size": 10}, "not a multiple"),
        ({"minibatches": 101}, "some would be empty"),
        ({"steps_": 3}, "steps_"),
        ({"tau": 0.0}, "tau"),
    ],
)
def test_a_configuration_that_makes_no_sense_says_why(wrong, says):
    with pytest.raises(ValueError, match=says):
        FinetuneConfig(**wrong)
