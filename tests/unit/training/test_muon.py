"""Muon: orthogonal updates for the blocks' matrices, each on its own, and AdamW for all else."""

from __future__ import annotations

import copy

import pytest
import torch

from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import TorchEngine, make_optimizer
from crystalforge.training.muon import orthogonal

SITES = ModelConfig(
    layout="sites", layers=1, heads=2, head_size=4, width=8, embedding=4, norm="rms", gated=True, coord_head="anchored"
)
TOKENS = ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8)
RATE = 0.01


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_singular_vectors_stay_and_singular_values_become_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonal(matrices, 5)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (found - u @ v).abs().max() < 0.2
    assert (torch.linalg.svdvals(orthogonal(matrices, 3)) < 2).all(), "fewer steps overshoot, and by no more than this"


@pytest.mark.parametrize("config", [TOKENS, SITES], ids=["tokens", "sites"])
def test_every_parameter_moves_and_matrices_by_an_orthogonal_step(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon", learning_rate=RATE, newton_steps=5))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    parts = model.matrices()
    assert {"blocks.0.qkv.weight", "blocks.0.up.weight"} <= set(parts)
    assert parts["blocks.0.qkv.weight"] == 3
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - before[name]
        assert float(moved.abs().max()) > 0, name
        for part in moved.chunk(parts.get(name, 1)):
            if name in parts:
                size = RATE * 0.2 * max(part.shape) ** 0.5
                values = torch.linalg.svdvals(part) / size
                assert values.min() > 0.6, name
                assert values.max() < 1.3, name


def test_a_run_taken_up_again_goes_on_bit_for_bit() -> None:
    def engine() -> TorchEngine:
        torch.manual_seed(0)
        return TorchEngine(build_model(SITES), OptimizerConfig(kind="muon", learning_rate=RATE, ema_decay=0.9))

    def step(machine: TorchEngine) -> None:
        machine.backward(sum(((p - 0.1) ** 2).sum() for p in machine.model.parameters()))
        machine.step()

    whole, part = engine(), engine()
    for number in range(5):
        step(whole)
        if number < 3:
            step(part)
    again = engine()
    again.load_state_dict(copy.deepcopy(part.state_dict()))
    for _ in range(2):
        step(again)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_matrices_of_a_group_that_have_no_gradient_stay() -> None:
    model = build_model(SITES)
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon"))
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
