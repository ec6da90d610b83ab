"""Log-probabilities in pieces, and the update made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystalforge.model.batch import TokenBatch
from crystalforge.model.likelihood import log_prob
from crystalforge.model.sampling.sampler import sample
from crystalforge.rl import losses
from crystalforge.rl.policy import improve, make_plan, measure
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import TorchEngine

# float64 sums in another order: a few ulp of log-probabilities of order 100
REORDERED = 1e-10
# central differences of step 1e-5 in float64 on a loss of order one: truncation 1e-10, rounding 1e-11
DIFFERENCE = 1e-7


@pytest.fixture
def drawn(tiny_model):
    return sample(tiny_model, np.repeat([221, 62, 12, 1], 6), seed=5).tokens


def test_a_plan_covers_every_row_once_and_keeps_pairs_together():
    n_sites = np.array([1, 9, 2, 8, 3, 7, 4, 6], dtype=np.int32)
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    plan = make_plan(n_sites, rows, piece_tokens=60, minibatches=2, unit=2, rng=np.random.default_rng(0))
    assert len(plan) == 2
    pieces = [piece for minibatch in plan for piece in minibatch]
    assert sorted(np.concatenate(pieces)) == list(range(8))
    for piece in pieces:
        assert all(pair[1] == pair[0] + 1 for pair in piece.reshape(-1, 2).tolist())


def test_a_piece_holds_no_more_tokens_than_asked():
    n_sites = np.arange(1, 21, dtype=np.int32)
    (pieces,) = make_plan(n_sites, np.arange(20), piece_tokens=300)
    assert all(len(piece) * 5 * (int(n_sites[piece].max()) + 1) <= 300 or len(piece) == 1 for piece in pieces)
    assert sum(map(len, pieces)) == 20


def test_an_empty_selection_gives_an_empty_plan():
    (pieces,) = make_plan(np.zeros(3, dtype=np.int32), np.zeros(0, dtype=np.int64), piece_tokens=100)
    assert pieces == []


def test_pieces_change_rounding_only(tiny_model, drawn):
    model = tiny_model.double()
    batch = TokenBatch.from_tokens(drawn, dtype=torch.float64)
    whole = log_prob(model, batch).total.detach()
    for piece_tokens in (1, 200, 10**6):
        plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=piece_tokens)
        assert (measure(model, batch, plan).total - whole).abs().max() < REORDERED


def test_the_first_ratio_is_exactly_one_and_the_gradient_does_not_depend_on_pieces(tiny_model, drawn):
    model = tiny_model.double()
    batch = TokenBatch.from_tokens(drawn, dtype=torch.float64)
    advantage = torch.randn(len(drawn), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ends = []
    for piece_tokens in (50, 10**6):
        model.load_state_dict(start)
        plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=piece_tokens)
        old = measure(model, batch, plan).total
        health = improve(
            # With so large an epsilon Adam's step is smooth in the gradient.
            TorchEngine(model, OptimizerConfig(learning_rate=0.1, epsilon=1.0, gradient_clip=1e9)),
            batch,
            plan,
            old,
            lambda rows, now, old=old: losses.ppo(now, old[rows], advantage[rows], 0.2),
            passes=1,
            clip=0.2,
        )
        assert health.first_ratio_error == 0.0
        assert health.optimizer_steps == 1
        ends.append(torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < REORDERED


def test_the_first_ratio_is_exactly_one_in_float32_over_minibatches(tiny_model, drawn):
    batch = TokenBatch.from_tokens(drawn)
    plan = make_plan(
        drawn.n_sites, np.arange(len(drawn)), piece_tokens=120, minibatches=3, rng=np.random.default_rng(0)
    )
    old = measure(tiny_model, batch, plan).total
    advantage = torch.linspace(-1, 1, len(drawn))
    health = improve(
        TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3)),
        batch,
        plan,
        old,
        lambda rows, now: losses.ppo(now, old[rows], advantage[rows], 0.2),
        passes=2,
        clip=0.2,
    )
    assert health.first_ratio_error == 0.0
    assert health.optimizer_steps == 6
    assert health.approx_kl > 0


def test_the_reported_divergence_and_clip_fraction_are_those_of_the_policy_after_each_step(tiny_model, drawn):
    model = tiny_model.double()
    batch = TokenBatch.from_tokens(drawn, dtype=torch.float64)
    plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=10**6)
    advantage = torch.linspace(-1, 1, len(drawn), dtype=torch.float64)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    old = measure(model, batch, plan).total

    def updated(passes: int):
        model.load_state_dict(start)
        return improve(
            TorchEngine(model, OptimizerConfig(learning_rate=3e-3)), batch, plan, old,
            lambda rows, now: losses.ppo(now, old[rows], advantage[rows], 0.2),
            passes=passes, clip=0.2,
        )  # fmt: skip

    first = updated(1)
    assert (first.approx_kl, first.clip_fraction, first.largest_ratio) == (0, 0, 1), "nothing has moved yet"
    log_rho = measure(model, batch, plan).total - old
    rho = log_rho.exp()
    second = updated(2)
    assert second.approx_kl == pytest.approx(float((rho - 1 - log_rho).mean()), abs=REORDERED)
    assert second.clip_fraction == pytest.approx(float(((rho - 1).abs() > 0.2).double().mean()) / 2, abs=REORDERED)
    assert second.largest_ratio == pytest.approx(float(rho.max()), abs=REORDERED)
    # for small steps rho - 1 - ln rho is half the square of ln rho
    assert 0.3 < second.approx_kl / float(0.5 * (log_rho**2).mean()) < 3
    assert 0 < second.clip_fraction < 0.5


def test_the_gradient_of_ppo_on_the_network_equals_finite_differences(tiny_model, drawn):
    model = tiny_model.double()
    batch = TokenBatch.from_tokens(drawn, dtype=torch.float64).truncated()
    generator = torch.Generator().manual_seed(2)
    advantage = torch.randn(len(drawn), generator=generator, dtype=torch.float64)
    # an old policy some way off, so that some ratios lie outside the trust interval
    old = log_prob(model, batch).total.detach() + 0.3 * torch.randn(len(drawn), generator=generator).double()

    def loss() -> torch.Tensor:
        return losses.ppo(log_prob(model, batch).total, old, advantage, 0.2).mean()

    model.zero_grad()
    loss().backward()
    rng = np.random.default_rng(0)
    step = 1e-5
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.abs().max() > 0:
            continue
        at = int(rng.choice(np.flatnonzero(parameter.grad.reshape(-1).numpy())))
        flat = parameter.data.view(-1)
        value = float(flat[at])
        with torch.no_grad():
            flat[at] = value + step
            above = float(loss())
            flat[at] = value - step
            below = float(loss())
            flat[at] = value
        assert float(parameter.grad.reshape(-1)[at]) == pytest.approx(
            (above - below) / (2 * step), rel=1e-4, abs=DIFFERENCE
        ), name


def test_the_number_of_cores_changes_no_bit(tiny_model, drawn):
    batch = TokenBatch.from_tokens(drawn)
    advantage = torch.linspace(-1, 1, len(drawn))
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    ends = []
    for threads in (1, 3):
        tiny_model.load_state_dict(start)
        torch.set_num_threads(threads)
        try:
            plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=100)
            assert len(plan[0]) > 3
            old = measure(tiny_model, batch, plan).total
            health = improve(
                TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-2)), batch, plan, old,
                lambda rows, now, old=old: losses.ppo(now, old[rows], advantage[rows], 0.2),
                passes=3, clip=0.2,
            )  # fmt: skip
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        assert health.first_ratio_error == 0.0
        ends.append(torch.cat([parameter.detach().reshape(-1) for parameter in tiny_model.parameters()]))
    assert torch.equal(ends[0], ends[1])


def test_passes_end_once_the_policy_has_moved_too_far(tiny_model, drawn):
    batch = TokenBatch.from_tokens(drawn)
    plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=10**6)
    old = measure(tiny_model, batch, plan).total
    advantage = torch.linspace(-1, 1, len(drawn))
    health = improve(
        TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-2)),
        batch,
        plan,
        old,
        lambda rows, now: losses.ppo(now, old[rows], advantage[rows], 0.2),
        passes=50,
        clip=0.2,
        kl_stop=0.01,
    )
    assert health.stopped_early
    assert 1 <= health.optimizer_steps < 50


def test_a_gradient_that_is_not_finite_is_not_taken(tiny_model, drawn):
    batch = TokenBatch.from_tokens(drawn)
    plan = make_plan(drawn.n_sites, np.arange(len(drawn)), piece_tokens=10**6)
    old = measure(tiny_model, batch, plan).total
    before = torch.cat([parameter.detach().reshape(-1).clone() for parameter in tiny_model.parameters()])
    health = improve(
        TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-2)),
        batch,
        plan,
        old,
        lambda rows, now: now * torch.inf,
        passes=2,
        clip=0.2,
    )
    after = torch.cat([parameter.detach().reshape(-1) for parameter in tiny_model.parameters()])
    assert health.skipped_steps == 2
    assert health.optimizer_steps == 0
    assert torch.equal(before, after)
