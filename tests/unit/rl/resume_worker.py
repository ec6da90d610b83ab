"""A fine-tuning run that may be killed: python resume_worker.py BASE OUT STEPS PAUSE.

PAUSE (seconds) is slept inside the reward, before and after the scores exist, to spread the instants of death.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward


class Slow(ElementReward):
    """Leaves a line per batch scored in `scored.log`, so that the test can count."""

    def __init__(self, log: Path, pause: float) -> None:
        super().__init__({z: 1.0 for z in range(5, 25)})
        self.log, self.pause = log, pause

    def score(self, crystals):
        time.sleep(self.pause)
        scores = super().score(crystals)
        with self.log.open("a") as stream:
            stream.write(f"{len(crystals)}\n")
        return scores


def main(base: str, out: str, steps: str, pause: str) -> None:
    torch.set_num_threads(1)
    weights = np.zeros(230)
    weights[[220, 224, 226]] = 1.0
    Path(out).mkdir(parents=True, exist_ok=True)
    finetune(
        FinetuneConfig(
            steps=int(steps),
            batch_size=20,
            learning_rate=5e-3,
            minibatches=2,
            checkpoint_every=3,
            monitor=MonitorConfig(every=4),
        ),
        Path(base),
        Slow(Path(out) / "scored.log", float(pause)),
        weights,
        Path(out),
        seed=3,
        held_out=ElementReward({z: 1.0 for z in range(5, 25)}, name="held-out"),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
