"""What the stages count on when they call fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import Reward
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward

ALWAYS_LOGGED = {
    "reward/mean", "reward/q10", "reward/q50", "reward/q90", "kl/base", "kl/base_std", "kl/step", "clip/fraction",
    "entropy/wyckoff", "entropy/element", "entropy/coords", "entropy/lattice", "floors/share", "unique/share",
    "gradient/norm", "ratio/first_error", "seconds/sample", "seconds/score", "seconds/update",
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = CrystalFormer(
        ModelConfig(layers=1, heads=1, head_size=8, width=8, embedding=4, first_wyckoff_hidden=0, coord_components=2)
    )
    save_model(tmp_path / "base", model, info={})
    return tmp_path / "base"


def test_the_toy_reward_is_a_reward():
    assert isinstance(ElementReward({8: 1.0}), Reward)


def test_a_run_leaves_what_later_stages_read(tmp_path, base):
    seen: dict[int, dict[str, float]] = {}
    novelty = []

    def is_known(tokens):
        novelty.append(len(tokens))
        return tokens.spacegroup == 1

    result = finetune(
        FinetuneConfig(steps=2, batch_size=10),
        base,
        ElementReward({8: 1.0}),
        np.ones(230) * 3.0,  # any positive scale
        tmp_path / "out",
        seed=0,
        is_known=is_known,
        on_metrics=lambda step, metrics: seen.__setitem__(step, dict(metrics)),
    )
    assert result.model_dir == tmp_path / "out" / "model"
    assert load_model(result.model_dir).info["steps"] == 2
    assert set(seen) == {0, 1}
    assert ALWAYS_LOGGED | {"novel/share"} <= set(seen[1])
    assert all(isinstance(value, float) and np.isfinite(value) for value in seen[1].values())
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 1} | seen[1]
    assert result.metrics == seen[1]
    assert novelty == [10, 10]


def test_constraints_reach_the_sampler_and_choose_the_space_groups(tmp_path, base):
    wish = Constraints.model_validate({"elements": "Ti O", "max_atoms": 12})
    config = FinetuneConfig(steps=1, batch_size=20, constraints=wish)
    finetune(config, base, ElementReward({8: 1.0}), np.ones(230), tmp_path / "out", seed=0)
    ((_, scored),) = journal.steps(tmp_path / "out" / "samples")
    assert set(np.unique(scored.tokens.element)) <= {0, 8, 22}
    impossible = config.model_copy(
        update={
            "constraints": Constraints.model_validate({"composition": "TiO2", "max_atoms": 3}),
            "spacegroups": (228,),
        }
    )
    with pytest.raises(InputError, match="can meet the constraints"):
        finetune(impossible, base, ElementReward({8: 1.0}), np.ones(230), tmp_path / "other", seed=0)
