"""A model that is as small as the architecture allows, and what is needed to tune it in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.rl.testing import ElementReward

TINY = ModelConfig(
    layers=1,
    heads=2,
    head_size=8,
    width=16,
    embedding=8,
    first_wyckoff_hidden=8,
    coord_components=3,
    lattice_components=2,
)


@pytest.fixture
def tiny_model() -> CrystalFormer:
    torch.manual_seed(0)
    return CrystalFormer(TINY).eval()


@pytest.fixture
def base(tmp_path: Path, tiny_model: CrystalFormer) -> Path:
    """Directory of the tiny, untrained base model."""
    save_model(tmp_path / "base", tiny_model, info={})
    return tmp_path / "base"


@pytest.fixture
def cubic() -> np.ndarray:
    """Space-group weights: three groups with short crystals."""
    weights = np.zeros(230)
    weights[[220, 224, 226]] = 1.0  # groups 221, 225, 227
    return weights


@pytest.fixture
def oxide_reward() -> ElementReward:
    """Wants oxygen and a few neighbours in the periodic table."""
    return ElementReward(dict.fromkeys(range(5, 25), 1.0))
