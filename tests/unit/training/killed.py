"""Trains as its arguments say; a test kills it. Arguments: store, out, seed, steps."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from crystalforge.data.store import TokenStore
from crystalforge.model.config import ModelConfig
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.pretrain import pretrain

if __name__ == "__main__":
    torch.set_num_threads(1)
    store, out, seed, steps = sys.argv[1:]
    pretrain(
        ModelConfig(
            layout="sites", layers=1, heads=2, head_size=4, width=8, embedding=4, norm="rms", gated=True, dropout=0.1
        ),
        PretrainConfig(
            epochs=None, steps=int(steps), batch_size=8, checkpoint_every=7, validate_every=11,
            bucket_groups=2, accumulation=2, redescribe=True,
            optimizer=OptimizerConfig(kind="muon", learning_rate=1e-2, ema_decay=0.9),
        ),
        TokenStore.open(store), Path(out), seed=int(seed),
    )  # fmt: skip
