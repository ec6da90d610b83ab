"""The whole job at a size that tests can afford: real components, few crystals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SMALL: dict[str, Any] = {
    "seed": 0,
    "data": {"source": {"kind": "prototypes"}, "limit": 300},
    "model": {"layers": 1, "heads": 2, "head_size": 16, "width": 32, "embedding": 16, "dropout": 0.0},
    "pretrain": {"epochs": 8, "batch_size": 64, "optimizer": {"learning_rate": 5e-3}},
    "service": {"instances": 1},
    # As in the quickstart: judged are only crystals that pass the guards, and from the third step on, when there are
    # enough of these to guess from, crystals that nobody judged are learned from too.
    "finetune": {
        "algorithm": "balance",
        "filter": True,
        "steps": 4,
        "batch_size": 24,
        "surrogate": {"waves": 2, "batch_size": 48, "minibatch": 24},
        "lowest": -0.7,
        "fade": 0.1,
        "checkpoint_every": 1,
        "learning_rate": 1e-3,
    },
    "evaluate": {"samples": 24, "nearest": False, "gallery": 2, "candidates": 20},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a directory of the given name with a params.yaml of the small job; returns that file."""

    def make(name: str) -> Path:
        path = tmp_path_factory.mktemp(name) / "params.yaml"
        path.write_text(yaml.safe_dump(SMALL))
        return path

    return make
