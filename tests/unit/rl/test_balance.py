"""The balance algorithm: on a model whose objective is a finite sum, and in the loop with the filter."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.rewards import tilted
from crystalforge.rewards.protocol import RewardUnavailable
from crystalforge.rl import journal, losses, rollout
from crystalforge.rl.algorithms import Evidence, balance_target
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward, ElementScreen, FailingReward

BASE = torch.tensor([0.35, 0.05, 0.2, 0.25, 0.1, 0.05], dtype=torch.float64)
REWARD = torch.tensor([0.1, 0.5, -0.3, 0.2, 0.45, -1.0], dtype=torch.float64)
TAU = 0.1
UNWATCHED = MonitorConfig(every=5, max_gap=None, min_unique=None, max_kl=None, max_worse=None)
SMALL = {"algorithm": "balance", "filter": True, "batch_size": 20, "learning_rate": 5e-3, "minibatches": 2, "kept": 20}


def evidence(rows: torch.Tensor, log_p: torch.Tensor) -> Evidence:
    return Evidence(REWARD[rows], torch.ones_like(rows), log_p.detach()[rows], BASE.log()[rows])


def exact(law: torch.Tensor) -> float:
    return float((law * (REWARD - TAU * (law / BASE).log())).sum())


def test_the_loss_is_zero_at_the_tilted_base_and_nowhere_else():
    best = torch.log_softmax(BASE.log() + REWARD / TAU, dim=0)
    rows = torch.arange(6)
    target = balance_target(evidence(rows, best), TAU, None)
    assert losses.balance(best, target).abs().max() < 1e-24
    start = BASE.log()
    assert losses.balance(start, balance_target(evidence(rows, start), TAU, None)).mean() > 1


def test_its_gradient_for_crystals_of_the_policy_is_that_of_the_objective():
    logits = (BASE.log() + torch.tensor([0.3, -0.2, 0.1, 0.0, 0.4, -0.5])).requires_grad_()
    log_p = torch.log_softmax(logits, dim=0)
    law = log_p.detach().exp()
    tilted_base = BASE.log() + REWARD / TAU
    target = tilted_base + (law * (log_p.detach() - tilted_base)).sum()  # the mean over the law itself
    (found,) = torch.autograd.grad((law * losses.balance(log_p, target)).sum(), logits, retain_graph=True)
    objective = (log_p.exp() * (REWARD - TAU * (log_p - BASE.log()))).sum()
    (expected,) = torch.autograd.grad(-objective / TAU, logits)
    assert (found - expected).abs().max() < 1e-12


def test_it_attains_the_attainable_on_an_enumerable_model_and_the_estimates_agree():
    """40 draws at a time, each learned from once fresh and again as one of the kept."""
    generator = torch.Generator().manual_seed(5)
    logits = BASE.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    kept = torch.zeros(0, dtype=torch.int64)
    for _ in range(60):
        log_p = torch.log_softmax(logits, dim=0).detach()
        fresh = torch.multinomial(log_p.exp(), 40, replacement=True, generator=generator)
        older = kept[torch.randperm(len(kept), generator=generator)[:40]]
        rows, kept = torch.cat([fresh, older]), torch.cat([kept, fresh])
        target = balance_target(evidence(rows, log_p), TAU, None)
        optimizer.zero_grad()
        losses.balance(torch.log_softmax(logits, dim=0)[rows], target).mean().backward()
        optimizer.step()
    law = torch.softmax(logits.detach(), dim=0)
    best = TAU * math.log(float((BASE * (REWARD / TAU).exp()).sum()))
    start = float((BASE * REWARD).sum())
    attained = (exact(law) - start) / (best - start)
    assert attained > 0.95
    rng = np.random.default_rng(0)
    ratio, reward = (law / BASE).log().numpy(), REWARD.numpy()
    own, of_base = rng.choice(6, 20_000, p=law.numpy()), rng.choice(6, 20_000, p=BASE.numpy())
    found = tilted.objective(reward[own], ratio[own], TAU)
    assert abs(found.value - exact(law)) < 4.5 * found.error
    share = tilted.attained(found, reward[of_base], TAU)
    assert abs(share.value - attained) < 4.5 * share.error


def test_rewards_below_the_lowest_are_learned_as_the_lowest():
    start = BASE.log()
    rows = torch.arange(6)
    target = balance_target(evidence(rows, start), TAU, -0.3)
    assert float(target[5] - start[5]) == pytest.approx(float(target[2] - start[2]))


def run(out, base, cubic, reward, *, steps: int = 3, heaviest: int = 100, **changes):
    config = FinetuneConfig(steps=steps, checkpoint_every=2, monitor=UNWATCHED, **SMALL | changes)
    return finetune(config, base, reward, cubic, out, seed=1, screen=ElementScreen(heaviest))


def test_a_step_draws_until_enough_pass_and_pays_for_these_alone(tmp_path, base, cubic, oxide_reward):
    result = run(tmp_path, base, cubic, oxide_reward)
    assert result.scored == oxide_reward.scored == 60
    steps = [scored for _, scored in journal.steps(tmp_path / "samples")]
    for scored in steps:
        assert scored.scores.ok.sum() == 20
        assert scored.scores.ok[-1]  # the last one drawn is the one that made it enough
        assert scored.scores.refused.sum() == len(scored) - 20 > 0
        heaviest = scored.tokens.element.max(axis=1)
        assert ((heaviest > 100) == scored.scores.refused).all()
        assert (scored.scores.values[scored.scores.refused] == -1.0).all()
        assert np.isnan(scored.scores.components["cost"][scored.scores.refused]).all()
    index = np.concatenate([scored.index for scored in steps])
    assert index.tolist() == list(range(len(index)))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["filtered/share"] == pytest.approx(20 / len(steps[0]))
    assert rows[2]["lesson/kept"] == 20
    assert rows[0]["ratio/first_error"] == 0
    reward, ratio = steps[0].scores.values, np.zeros(len(steps[0]))
    passed = ~steps[0].scores.refused
    assert rows[0]["filtered/objective"] == pytest.approx(tilted.objective(reward, ratio, 0.1, passed).value, abs=1e-4)
    assert rows[0]["objective/attained"] == pytest.approx(0, abs=1e-3)


def test_the_crystals_refused_are_those_of_the_run_without_a_filter(tmp_path, base, cubic, oxide_reward):
    """Numbered through: the filter changes what is paid for, not what is drawn."""
    run(tmp_path / "with", base, cubic, oxide_reward, steps=1)
    ((_, with_filter),) = journal.steps(tmp_path / "with" / "samples")
    count = len(with_filter)
    config = FinetuneConfig(steps=1, monitor=UNWATCHED, **SMALL | {"filter": False, "batch_size": count})
    finetune(config, base, oxide_reward, cubic, tmp_path / "without", seed=1)
    ((_, plain),) = journal.steps(tmp_path / "without" / "samples")
    assert (plain.tokens.element == with_filter.tokens.element).all()


def test_a_session_that_goes_on_has_kept_everything(tmp_path, base, cubic):
    """Kept crystals, moving average and filter come back as they were: the same bits, and nothing scored twice."""
    whole = run(tmp_path / "whole", base, cubic, ElementReward({8: 1.0}), steps=5, average=0.9)
    reward = FailingReward({8: 1.0})
    reward.away_after = 3
    with pytest.raises(RewardUnavailable):
        run(tmp_path / "cut", base, cubic, reward, steps=5, average=0.9)
    reward.away_after = None
    cut = run(tmp_path / "cut", base, cubic, reward, steps=5, average=0.9)
    assert weights_hash(load_model(cut.model_dir).model) == weights_hash(load_model(whole.model_dir).model)
    assert reward.scored == 100
    plain = run(tmp_path / "plain", base, cubic, ElementReward({8: 1.0}), steps=5)
    assert weights_hash(load_model(plain.model_dir).model) != weights_hash(load_model(whole.model_dir).model)


def test_a_filter_that_lets_nothing_through_ends_with_a_remedy(tmp_path, base, cubic, oxide_reward, monkeypatch):
    monkeypatch.setattr(rollout, "MOST_DRAWS", 3)
    with pytest.raises(InputError, match=r"finetune.filter: of 60 crystals drawn 0 pass"):
        run(tmp_path, base, cubic, oxide_reward, heaviest=0)
    assert oxide_reward.scored == 0


def test_a_filter_needs_a_screen_and_ungrouped_crystals(tmp_path, base, cubic, oxide_reward):
    with pytest.raises(InputError, match="none were given"):
        finetune(FinetuneConfig(**SMALL), base, oxide_reward, cubic, tmp_path, seed=1)
    with pytest.raises(ValueError, match="tear them apart"):
        FinetuneConfig(algorithm="grpo", filter=True)
