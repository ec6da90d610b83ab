"""The best compromises over a whole run, whoever drew them and however often it was interrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.rewards.protocol import RewardUnavailable, Scores
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.pareto import FILE, Sense, non_dominated, objectives
from crystalforge.rl.testing import ElementReward

WANTED: dict[str, Sense] = {"oxygen": "max", "heaviest": "min"}
CONFIG = FinetuneConfig(
    steps=4, batch_size=30, learning_rate=1e-2, pareto=WANTED, checkpoint_every=2,
    monitor=MonitorConfig(min_unique=None, max_kl=None),
)  # fmt: skip


class TwoWishes(ElementReward):
    """Much oxygen, and light elements; goes away once when told to."""

    def __init__(self, away_at: int | None = None) -> None:
        super().__init__({8: 1.0})
        self.away_at = away_at

    def score(self, crystals):
        if self.calls == self.away_at:
            self.away_at = None
            raise RewardUnavailable("away")
        plain = super().score(crystals)
        heaviest = np.array([np.nan if c is None else float(c.numbers.max()) for c in crystals])
        return Scores(plain.values, plain.status, {"oxygen": -plain.components["cost"], "heaviest": heaviest})


def by_hand(folder) -> set[tuple[float, float]]:
    """The values of the front of everything that was scored, by comparing all pairs."""
    parts = [scored.scores for _, scored in journal.steps(folder)]
    scores = Scores.concatenate(parts)
    values = np.stack([scores.components["oxygen"], -scores.components["heaviest"]], axis=1)[scores.ok]
    worse = [any((other >= row).all() and (other > row).any() for other in values) for row in values]
    return {(float(row[0]), float(-row[1])) for row, w in zip(values, worse, strict=True) if not w}


def front(out) -> set[tuple[float, float]]:
    components = journal.read(out / FILE).scores.components
    return set(zip(components["oxygen"].tolist(), components["heaviest"].tolist(), strict=True))


def test_the_set_is_that_of_everything_the_run_scored(tmp_path, base, cubic):
    finetune(CONFIG, base, TwoWishes(), cubic, tmp_path, seed=1)
    assert len(by_hand(tmp_path / "samples")) > 1
    assert front(tmp_path) == by_hand(tmp_path / "samples")
    kept = journal.read(tmp_path / FILE)
    assert len(set(kept.index.tolist())) == len(kept)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["pareto/size"] == len(kept)
    assert rows[0]["pareto/new"] == rows[0]["pareto/size"]


def test_an_interrupted_run_keeps_the_same_set(tmp_path, base, cubic):
    finetune(CONFIG, base, TwoWishes(), cubic, tmp_path / "whole", seed=1)
    reward = TwoWishes(away_at=3)
    with pytest.raises(RewardUnavailable):
        finetune(CONFIG, base, reward, cubic, tmp_path / "killed", seed=1)
    (tmp_path / "killed" / FILE).unlink()  # even this may be lost
    finetune(CONFIG, base, reward, cubic, tmp_path / "killed", seed=1)
    whole, killed = (journal.read(tmp_path / name / FILE) for name in ("whole", "killed"))
    assert whole.index.tolist() == killed.index.tolist()


def test_dominance_is_strict_somewhere_and_copies_stay():
    gains = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.5], [0.0, 2.0], [0.0, 1.9]])
    assert non_dominated(gains).tolist() == [True, True, False, True, False]
    random = np.random.default_rng(0).integers(0, 5, size=(200, 3)).astype(float)
    slow = [not any((b >= a).all() and (b > a).any() for b in random) for a in random]
    assert non_dominated(random).tolist() == slow


def test_a_component_that_is_not_there_is_named():
    scores = Scores(np.zeros(1), np.zeros(1, np.int32), {"oxygen": np.zeros(1)})
    with pytest.raises(InputError, match=r"no component 'gap'; it has \['oxygen'\]"):
        objectives({"gap": "max"}, scores)
