"""The control of the paper: generate, relax, keep, train."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.rewards.config import RelaxConfig
from crystalforge.rewards.protocol import RewardUnavailable
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward

STRETCH = 1.5
STEPS = 7
CONFIG = FinetuneConfig(
    algorithm="sft", steps=4, batch_size=30, learning_rate=1e-2, keep_component="cost", keep_below=-0.3,
    relax=RelaxConfig(), monitor=MonitorConfig(min_unique=None, max_kl=None), checkpoint_every=2,
)  # fmt: skip
WANTED = dict.fromkeys(range(5, 25), 1.0)


class Stretcher:
    """Stretches every cell; cannot do anything with one crystal in ten."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, crystals: Sequence[Crystal]) -> tuple[list[Crystal | None], np.ndarray]:
        self.calls.append(len(crystals))
        out: list[Crystal | None] = [Crystal(c.lattice * STRETCH, c.numbers, c.frac) for c in crystals]
        out[::10] = [None] * len(out[::10])
        return out, np.full(len(out), STEPS, dtype=np.int32)


def test_what_is_learned_is_relaxed_judged_again_and_kept(tmp_path, base, cubic):
    reward, relaxer = ElementReward(WANTED), Stretcher()
    result = finetune(CONFIG, base, reward, cubic, tmp_path, seed=1, relaxer=relaxer)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    drawn, relaxed = (list(journal.steps(tmp_path / name)) for name in ("samples", "relaxed"))
    assert [step for step, _ in relaxed] == list(range(4))
    total = 0
    for row, (_, before), (_, after), call in zip(rows, drawn, relaxed, relaxer.calls, strict=True):
        assert row["relax/candidates"] == before.scores.ok.sum() == call
        assert 0 < row["relax/tokenised"] == len(after) < call
        assert row["relax/steps"] == STEPS * len(after)
        place = {int(index): k for k, index in enumerate(before.index)}
        same = np.array([place[int(index)] for index in after.index])
        # cubic cells: the first length per atom^(1/3) is stretched, whatever cell was found again
        ratio = after.tokens.lattice[:, 0] / before.tokens.lattice[same, 0]
        assert np.median(ratio) == pytest.approx(STRETCH, rel=1e-6)
        assert row["pool/new"] == (after.scores.values > 0.3).sum()
        total += len(after)
    assert rows[-1]["pool/size"] == sum(row["pool/new"] for row in rows)
    assert result.scored == reward.scored == 4 * 30 + total
    assert reward.scored == rows[-1]["budget/scored"]


def test_only_promising_candidates_are_relaxed(tmp_path, base, cubic):
    config = CONFIG.model_copy(update={"relax_below": -0.6, "steps": 1})
    relaxer = Stretcher()
    finetune(config, base, ElementReward(WANTED), cubic, tmp_path, seed=1, relaxer=relaxer)
    ((_, drawn),) = journal.steps(tmp_path / "samples")
    assert relaxer.calls == [(drawn.scores.values > 0.6).sum()]
    assert relaxer.calls[0] < drawn.scores.ok.sum()


def test_a_killed_run_relaxes_nothing_twice_and_ends_alike(tmp_path, base, cubic):
    class Failing(ElementReward):
        def score(self, crystals):
            if self.calls == 6:  # in the fourth step, after the second checkpoint's first step was relaxed
                self.calls += 1
                raise RewardUnavailable("away")
            return super().score(crystals)

    whole, relaxer = tmp_path / "whole", Stretcher()
    first = finetune(CONFIG, base, ElementReward(WANTED), cubic, whole, seed=1, relaxer=relaxer)
    killed, other = tmp_path / "killed", Stretcher()
    reward = Failing(WANTED)
    with pytest.raises(RewardUnavailable):
        finetune(CONFIG, base, reward, cubic, killed, seed=1, relaxer=other)
    second = finetune(CONFIG, base, reward, cubic, killed, seed=1, relaxer=other)
    assert weights_hash(load_model(first.model_dir).model) == weights_hash(load_model(second.model_dir).model)
    assert other.calls == relaxer.calls
    assert second.scored == first.scored


def test_relaxing_without_a_potential_or_for_another_algorithm_is_refused(tmp_path, base, cubic):
    with pytest.raises(InputError, match="needs a potential"):
        finetune(CONFIG, base, ElementReward(WANTED), cubic, tmp_path, seed=1)
    with pytest.raises(ValueError, match="relax is for sft"):
        FinetuneConfig(algorithm="ppo", relax=RelaxConfig())
