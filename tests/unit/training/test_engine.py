"""One optimiser step: clip, schedule, average, pieces, broken gradients, state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import Engine, TorchEngine
from crystalforge.training.snapshots import load_snapshot, save_snapshot

SMALL = ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8)


def engine(seed: int = 0, **settings: object) -> TorchEngine:
    torch.manual_seed(seed)
    return TorchEngine(CrystalFormer(SMALL), OptimizerConfig.model_validate(settings))


def loss(machine: TorchEngine, scale: float = 1.0) -> torch.Tensor:
    return scale * sum(((p - 0.1) ** 2).sum() for p in machine.model.parameters())


def weights(machine: TorchEngine) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in machine.model.parameters()])


def test_it_is_an_engine() -> None:
    assert isinstance(engine(), Engine)


def test_steps_are_adam_on_the_clipped_gradient() -> None:
    """Against PyTorch's Adam on gradients that are clipped by hand."""
    ours, theirs = engine(learning_rate=1e-2, gradient_clip=0.5, decay=0.1), engine()
    adam = torch.optim.Adam(theirs.model.parameters(), lr=1e-2, fused=False, foreach=False)
    for step in range(5):
        ours.backward(loss(ours, 3.0))
        norm = ours.step()
        theirs.model.zero_grad()
        loss(theirs, 3.0).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in theirs.model.parameters()])
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert norm > 0.5
        for p in theirs.model.parameters():
            p.grad *= 0.5 / gradient.norm()
        adam.param_groups[0]["lr"] = 1e-2 / (1 + 0.1 * step)
        adam.step()
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)


def test_pieces_of_a_batch_add_up() -> None:
    whole, parts = engine(), engine()
    whole.backward(loss(whole))
    for _ in range(4):
        parts.backward(loss(parts, 0.25))
    assert whole.step() == pytest.approx(parts.step(), rel=1e-6)
    torch.testing.assert_close(weights(whole), weights(parts))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_gradient_changes_no_weight(bad: float) -> None:
    machine = engine(ema_decay=0.9)
    machine.backward(loss(machine))
    machine.step()
    before = weights(machine)
    machine.backward(loss(machine, bad))
    assert not math.isfinite(machine.step())
    assert torch.equal(weights(machine), before)
    machine.backward(loss(machine))
    assert math.isfinite(machine.step())
    assert machine.steps == 3


def test_rates_follow_the_schedule() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, cosine_steps=100)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(9) == pytest.approx(1.0, abs=0.02)
    assert config.rate(50) == pytest.approx(0.55)
    assert config.rate(100) == config.rate(500) == pytest.approx(0.1)
    assert OptimizerConfig(learning_rate=1.0, decay=0.5).rate(2) == 0.5


def test_weight_decay_shrinks_matrices_only() -> None:
    machine = engine(learning_rate=0.1, weight_decay=0.5)
    before = {name: value.clone() for name, value in machine.model.state_dict().items()}
    machine.backward(0.0 * loss(machine))
    machine.step()
    for name, value in machine.model.state_dict().items():
        expected = before[name] * (1 - 0.1 * 0.5) if value.ndim >= 2 else before[name]
        torch.testing.assert_close(value, expected)


def test_the_average_follows_the_weights_slowly() -> None:
    machine = engine(learning_rate=0.05, ema_decay=0.5)
    start = weights(machine)
    for _ in range(3):
        machine.backward(loss(machine))
        machine.step()
    average = torch.cat([machine.averaged_state()[name].reshape(-1) for name, _ in machine.model.named_parameters()])
    moved = (weights(machine) - start).abs()
    assert ((average - start).abs() < moved + 1e-9).all()
    assert float((average - start).abs().max()) > 0
    assert engine().averaged_state()["head.bias"] is not None


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_snapshot_continues_the_run_exactly(tmp_path: Path, ema: float) -> None:
    first = engine(ema_decay=ema, learning_rate=1e-2)
    for _ in range(3):
        first.backward(loss(first))
        first.step()
    save_snapshot(tmp_path, first.steps, {"engine": first.state_dict(), "note": "text"})
    found = load_snapshot(tmp_path)
    assert found is not None
    step, state = found
    second = engine(seed=9, ema_decay=ema, learning_rate=1e-2)
    second.load_state_dict(state["engine"])
    assert step == second.steps == 3
    assert state["note"] == "text"
    for machine in (first, second):
        machine.backward(loss(machine))
        machine.step()
    assert torch.equal(weights(first), weights(second))
    for name, value in first.averaged_state().items():
        assert torch.equal(value, second.averaged_state()[name])


def test_the_rate_falls_along_a_line_to_nothing() -> None:
    config = OptimizerConfig(learning_rate=1.0, linear_steps=10)
    assert [config.rate(step) for step in (0, 5, 10, 11)] == [1.0, 0.5, 0.0, 0.0]
