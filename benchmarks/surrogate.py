"""What is the quick guess of a reward worth?   python benchmarks/surrogate.py RECIPE [--set section.key=value ...]

Crystals of the recipe's base model that pass the guards are judged by its reward until there are the largest of
`--known` and `--held-out` more. For each number of judged crystals: seconds to fit, share of the variance of the
held-out rewards that the guess tells, and what the law p_base exp(guess/tau)/Z, behind the guards, attains of
L* - L(base) by the held-out crystals' true rewards (importance weights; no policy is trained). Rewards below
`--lowest` are taken as that for fitting and telling; the objective has them as they are. Prints JSON. Beside them:
nothing guessed (the filter alone), and the reward itself (the optimum).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import finish

from crystalforge.common.seeds import derived
from crystalforge.config import load
from crystalforge.model.checkpoint import load_model
from crystalforge.rewards import build, tilted
from crystalforge.rewards.screen import Screen
from crystalforge.rl.journal import join
from crystalforge.rl.rollout import Source, roll_out
from crystalforge.rl.surrogate import Surrogate, rows_of
from crystalforge.stages.models import find_model, spacegroup_weights

STEP = 2000  # judged crystals between two records


def main() -> None:
    """Read the arguments, draw and judge, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--known", type=int, nargs="+", default=[1000, 2560, 5120])
    parser.add_argument("--held-out", type=int, default=3000)
    parser.add_argument("--lowest", type=float, default=-1.0)
    parser.add_argument("--work", type=Path, required=True, help="directory for what was drawn and judged")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(arguments.recipe, arguments.set)
    place = find_model(Path(config.base or "mp20"))
    model, tau = load_model(place).model, config.finetune.tau
    source = Source(spacegroup_weights(place, Path()), derived(config.seed, "surrogate"))
    reward, screen = build(config.reward), Screen.of(config.reward)
    parts, drawn = [], 0
    for step in range(-(-(max(arguments.known) + arguments.held_out) // STEP)):
        rollout = roll_out(
            model, source, reward, step=step, first_index=drawn, count=STEP, folder=arguments.work, screen=screen
        )
        parts.append(rollout.scored)
        drawn += len(rollout.scored)
    scored = join(parts)
    passed = np.flatnonzero(~scored.scores.refused)
    rows, rewards = rows_of(scored.tokens[passed]), scored.scores.values[passed]
    held = slice(len(passed) - arguments.held_out, None)
    start, best = float(scored.scores.values.mean()), tilted.optimum(scored.scores.values, tau).value
    cost = tau * np.log(len(passed) / drawn)  # of the filter, which is a part of every law below

    def attained(guess: np.ndarray) -> float:
        weight = np.exp((guess - guess.max()) / tau)
        log_ratio = np.log(weight / weight.mean())
        value = (weight * (rewards[held] - tau * log_ratio)).mean() / weight.mean() + cost
        return round(float((value - start) / (best - start)), 3)

    truth = np.maximum(rewards[held], arguments.lowest)
    figures = []
    for count in arguments.known:
        surrogate = Surrogate()
        surrogate.add(rows[:count], rewards[:count])
        began = time.process_time()
        surrogate.fit(arguments.lowest)
        seconds = time.process_time() - began
        guess = surrogate.guess(rows[held])
        told = 1 - ((truth - guess) ** 2).mean() / truth.var()
        figures.append(
            {"known": count, "cpu_s": round(seconds, 2), "told": round(float(told), 3), "attained": attained(guess)}
        )
    finish(
        {
            "drawn": drawn,
            "passed": len(passed),
            "base": round(start, 4),
            "optimum": round(best, 4),
            "nothing": attained(np.zeros(arguments.held_out)),
            "reward": attained(rewards[held]),
            "surrogate": figures,
        }
    )


if __name__ == "__main__":
    main()
