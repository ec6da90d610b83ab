"""Every pipeline by the name that `crystalforge submit` knows it by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines import discovery, finetune, ingest, screen, sweep, train_predictor
from pipelines.cluster import ClusterConfig

PIPELINES: dict[str, Callable[[ClusterConfig | None], Any]] = {
    "discovery": discovery.build,
    "finetune": finetune.build,
    "sweep": sweep.build,
    "train-predictor": train_predictor.build,
    "ingest": ingest.build,
    "screen": screen.build,
}
