"""Runs the same fine-tuning twice, once undisturbed and once killed again and again:
resume_worker.py BASE OUT STEPS KIND. KIND is an algorithm, or surrogate: `balance` that learns from unscored crystals
too. `balance` draws against a filter.

Each session is a process of its own (forked, which saves importing torch every time) and dies by SIGKILL. Leaves
OUT/whole and OUT/killed; prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from crystalforge.crystal.convert import to_crystals
from crystalforge.model.checkpoint import load_model
from crystalforge.model.sampling.sampler import sample
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward, ElementScreen

WORTH = dict.fromkeys(range(5, 25), 1.0)
MORE = {
    "balance": {"filter": True, "kept": 20, "average": 0.9},
    "surrogate": {
        "algorithm": "balance", "filter": True, "batch_size": 30, "surrogate": {"waves": 2, "batch_size": 30}
    },
}  # fmt: skip
PAUSE = 0.02  # seconds inside the reward, to spread the instants of death


class Logged(ElementReward):
    """Leaves a line per batch scored, so that the test can count."""

    def __init__(self, log: Path) -> None:
        super().__init__(WORTH)
        self.log = log

    def score(self, crystals):
        time.sleep(PAUSE)
        scores = super().score(crystals)
        with self.log.open("a") as stream:
            stream.write(f"{len(crystals)}\n")
        return scores


def session(base: Path, out: Path, steps: int, algorithm: str) -> int:
    """Start a process that fine-tunes from wherever `out` stands; its id."""
    process = os.fork()
    if process:
        return process
    weights = np.zeros(230)
    weights[[220, 224, 226]] = 1.0
    common = {"steps": steps, "batch_size": 20, "learning_rate": 5e-3, "minibatches": 2, "checkpoint_every": 3}
    config = FinetuneConfig.model_validate(
        common | {"algorithm": algorithm, "monitor": MonitorConfig(every=4)} | MORE.get(algorithm, {}),
    )
    try:
        reward, held_out = Logged(out / "scored.log"), ElementReward(WORTH, name="other")
        finetune(config, base, reward, weights, out, seed=3, held_out=held_out, screen=ElementScreen())
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def steps_seen(out: Path) -> int:
    """Steps whose crystals are recorded."""
    return len(list(out.glob("samples/step-*")))


def main(base: Path, out: Path, steps: int, algorithm: str) -> None:
    torch.set_num_threads(1)
    # load all tables before the first fork, so that no session spends its life on them
    to_crystals(sample(load_model(base).model, np.full(20, 225), seed=0).tokens, primitive=True)
    for name in ("whole", "killed"):
        (out / name).mkdir(parents=True)
    _, status = os.waitpid(session(base, out / "whole", steps, algorithm), 0)
    assert status == 0
    rng, kills = random.Random(11), 0
    while True:
        seen, process = steps_seen(out / "killed"), session(base, out / "killed", steps, algorithm)
        ended = 0
        while not ended and steps_seen(out / "killed") <= seen:  # let it get one step further, then strike
            time.sleep(0.002)
            ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            time.sleep(rng.uniform(0, 0.25))
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
