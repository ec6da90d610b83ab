"""Small models whose heads are not trivial: weights spread as in the parity fixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer

SMALL = {"layers": 2, "heads": 4, "head_size": 16, "width": 32, "embedding": 16, "first_wyckoff_hidden": 32}
SITES = {"layout": "sites", "norm": "rms", "gated": True, "coord_head": "anchored"}
LAYOUTS: dict[str, dict[str, Any]] = {"tokens": {}, "sites": SITES}


@pytest.fixture(scope="session")
def spread_model() -> Callable[..., CrystalFormer]:
    """A model with linear weights ~ N(0, 0.9/√fan_in), biases ~ N(0, 0.1), embeddings ~ N(0, 0.5).

    layout "sites": with all else that departs from the published architecture.
    """

    def build(seed: int = 0, layout: str = "tokens", **config: Any) -> CrystalFormer:
        model = build_model(ModelConfig(**{**SMALL, **LAYOUTS[layout], **config}))
        generator = torch.Generator().manual_seed(seed)

        def normal(tensor: torch.Tensor, scale: float) -> None:
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))

        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    normal(module.weight, 0.9 / math.sqrt(module.in_features))
                    if module.bias is not None:
                        normal(module.bias, 0.1)
                elif isinstance(module, torch.nn.Embedding):
                    normal(module.weight, 0.5)
            if layout == "tokens":
                model.wyckoff_in.weight[:, -1] *= 0.05  # the raw multiplicity, up to 192
        return model.eval()

    return build
