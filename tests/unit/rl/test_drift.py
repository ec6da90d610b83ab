"""What a policy must not gain by: the exploit without each switch, and that the switch closes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.crystal.keys import composition_keys, element_counts
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.rewards.protocol import RewardUnavailable, Scores, Status
from crystalforge.rl import journal
from crystalforge.rl.config import DriftConfig, FinetuneConfig, MonitorConfig
from crystalforge.rl.drift import PSEUDO, Coverage, Repeats
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward, ElementScreen, FailingReward
from tests.unit.crystal.conftest import crystals

UNWATCHED = MonitorConfig(every=50, max_gap=None, min_unique=None, max_kl=None, max_worse=None)
FAST: dict[str, Any] = {"batch_size": 40, "learning_rate": 1e-2, "tau": 0.05, "monitor": UNWATCHED}
OXIDES = {"constraints": {"elements": "O Na Mg Ti Fe Sr Ba"}}


SALT, SAME, CAESIUM, OTHER = (225, "ab", [11, 17]), (225, "ab", [17, 11]), (221, "ab", [11, 17]), (225, "ab", [3, 9])
FLUORITE, ELEMENT = (225, "ac", [20, 9]), (225, "ab", [11, 11])


def formulas(tokens: Tokens) -> np.ndarray:
    return composition_keys(element_counts(tokens))


def test_repeats_count_within_the_batch_and_over_the_run():
    repeats = Repeats(0.5, formulas)
    assert repeats.of(crystals(SALT, FLUORITE, SAME, CAESIUM)) == pytest.approx(
        [0, 0, 0.5 * np.log(2), 0.5 * np.log(3)]
    )
    assert repeats.of(crystals(FLUORITE, SALT, OTHER)) == pytest.approx([0.5 * np.log(2), 0.5 * np.log(4), 0])


def test_coverage_pays_what_became_rare_with_what_became_common():
    coverage = Coverage(2.0)
    change, divergence = coverage.of(crystals(SALT, SALT, ELEMENT, ELEMENT))
    assert (change == 0).all()
    assert divergence == 0
    change, divergence = coverage.of(crystals(SALT, ELEMENT, ELEMENT, ELEMENT))
    one, two = np.log((3 + PSEUDO) / (2 + PSEUDO)), np.log((1 + PSEUDO) / (2 + PSEUDO))
    sodium, chlorine = np.log((3.5 + PSEUDO) / (3 + PSEUDO)), np.log((0.5 + PSEUDO) / (1 + PSEUDO))
    assert change[1:] == pytest.approx(-2 * (one + sodium))
    assert change[0] == pytest.approx(-2 * (two + (sodium + chlorine) / 2))
    assert divergence == pytest.approx((3 * one + two + 3.5 * sodium + 0.5 * chlorine) / 4)
    assert coverage.of(crystals())[0].size == 0


def elements_of(crystals: Sequence[Crystal | None]) -> list[set[int]]:
    return [set() if crystal is None else set(crystal.numbers.tolist()) for crystal in crystals]


class Unexplored(ElementReward):
    """Chemical systems with titanium or strontium hold no known phase: nothing competes with what is made of them."""

    demands: bool = True
    given: float = -1.0

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        scores = super().score(crystals)
        unknown = np.array([bool(kind & {22, 38}) for kind in elements_of(crystals)]) & scores.ok
        if not self.demands:
            return replace(scores, values=np.where(unknown, 1.0, scores.values))
        status = np.where(unknown, Status.SPARSE_HULL, scores.status).astype(np.int32)
        return Scores(np.where(unknown, self.given, scores.values), status, scores.components)


class Few(ElementReward):
    """Likes few elements, and dislikes oxygen: what a potential's errors came to on MP-20."""

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        scores = super().score(crystals)
        worth = np.array([-0.15 * len(kind) - 0.3 * (8 in kind) for kind in elements_of(crystals)])
        return replace(scores, values=np.where(scores.ok, worth, -1.0))


def tuned(out: Path, base: Path, weights: np.ndarray, reward: ElementReward, steps: int, **settings: Any) -> Path:
    config = FinetuneConfig.model_validate(FAST | {"steps": steps} | settings)
    return finetune(config, base, reward, weights, out, seed=1, screen=ElementScreen(110)).model_dir


@pytest.mark.parametrize("algorithm", ["ppo", "balance", "grpo", "dpo"])
def test_nothing_is_learned_from_what_cannot_be_judged(tmp_path, base, cubic, algorithm):
    """Whatever it is given: at the floor it would have been learned that it is bad."""
    settings = {"algorithm": algorithm, "batch_size": 20, "lowest": None} | OXIDES
    ends = {}
    for abstain in (True, False):
        for given in (-1.0, 2.0):
            reward = Unexplored(dict.fromkeys(range(5, 25), 1.0))
            reward.given = given
            out = tmp_path / f"{abstain}{given}"
            model = tuned(out, base, cubic, reward, 1, drift={"abstain": abstain}, **settings)
            ends[abstain, given] = weights_hash(load_model(model).model)
            metrics = json.loads((out / "metrics.jsonl").read_text())
            assert metrics["floors/sparse_hull"] > 0.1
            assert metrics.get("drift/abstained", 0) == (metrics["floors/sparse_hull"] if abstain else 0)
    assert ends[True, -1.0] == ends[True, 2.0]
    assert ends[False, -1.0] != ends[False, 2.0]


def course(out: Path, measure: Callable[[Tokens], float]) -> tuple[float, float]:
    """Of the first step's crystals, and the mean over the last three steps."""
    found = [measure(scored.tokens) for _, scored in journal.steps(out / "samples")]
    return found[0], float(np.mean(found[-3:]))


def test_abstention_neither_seeks_nor_flees_the_unexplored(tmp_path, base, cubic):
    """A hull without competitors pays whatever is written there; at the floor the policy learns to stay away."""

    def unexplored(tokens: Tokens) -> float:
        return float(np.isin(tokens.element, (22, 38)).any(axis=1).mean())

    found = {}
    for name, demands, abstain in (("paid", False, False), ("floored", True, False), ("abstaining", True, True)):
        reward = Unexplored({8: 0.3}, other=0.2)
        reward.demands = demands
        tuned(tmp_path / name, base, cubic, reward, 8, drift={"abstain": abstain}, **OXIDES)
        first, found[name] = course(tmp_path / name, unexplored)
    assert found["paid"] > first + 0.25
    assert found["floored"] < first - 0.35
    assert abs(found["abstaining"] - first) < 0.15


def test_a_formula_that_pays_best_is_not_written_again_and_again(tmp_path, base, cubic):
    distinct = {}
    for beta in (0.0, 4.0):
        reward = ElementReward({12: 1.0, 8: 0.6}, other=0.0)
        tuned(tmp_path / str(beta), base, cubic, reward, 9, drift={"compositions": beta}, **OXIDES)
        _, distinct[beta] = course(
            tmp_path / str(beta), lambda tokens: len(set(formulas(tokens).tolist())) / len(tokens)
        )
        assert course(tmp_path / str(beta), lambda tokens: float((tokens.element == 12).any(axis=1).mean()))[1] > 0.5
    assert distinct[0.0] < 0.5
    assert distinct[4.0] > distinct[0.0] + 0.15


def test_coverage_keeps_oxygen_and_more_than_two_elements(tmp_path, base, cubic):
    def kinds(tokens: Tokens) -> float:
        return float(np.mean([len(set(row[row > 0].tolist())) for row in tokens.element]))

    def oxides(tokens: Tokens) -> float:
        return float((tokens.element == 8).any(axis=1).mean())

    found = {}
    for price in (0.0, 20.0):
        tuned(tmp_path / str(price), base, cubic, Few({}), 8, drift={"coverage": price}, **OXIDES)
        found[price] = [course(tmp_path / str(price), measure) for measure in (kinds, oxides)]
    (first, without), (_, held) = (found[price][0] for price in found)
    assert without < 1.5 < 1.9 < held < first
    (_, without), (_, held) = (found[price][1] for price in found)
    assert without < 0.05 < held


@pytest.mark.parametrize("algorithm", ["ppo", "balance"])
def test_a_run_that_is_taken_up_remembers(tmp_path, base, cubic, algorithm):
    settings = {
        "algorithm": algorithm, "batch_size": 20, "filter": algorithm == "balance", "kept": 10, "checkpoint_every": 2,
        "drift": {"abstain": True, "compositions": 1.0, "structures": 0.5, "coverage": 2.0},
    } | OXIDES  # fmt: skip
    whole = tuned(tmp_path / "whole", base, cubic, ElementReward({8: 1.0}), 4, **settings)
    reward = FailingReward({8: 1.0})
    reward.away_after = 3
    with pytest.raises(RewardUnavailable):
        tuned(tmp_path / "cut", base, cubic, reward, 4, **settings)
    reward.away_after = None
    cut = tuned(tmp_path / "cut", base, cubic, reward, 4, **settings)
    assert weights_hash(load_model(cut).model) == weights_hash(load_model(whole).model)
    last = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("whole", "cut")]
    parts = [{name: value for name, value in json.loads(line).items() if name.startswith("drift/")} for line in last]
    assert parts[0] == parts[1]
    assert all(parts[0][f"drift/{name}"] > 0 for name in ("compositions", "structures", "coverage_kl"))


def test_supervised_learning_has_no_worth_to_change():
    with pytest.raises(ValueError, match="sft learns from what is kept"):
        FinetuneConfig(algorithm="sft", drift=DriftConfig(abstain=True))
    assert not FinetuneConfig().drift.active
