"""Seconds per PPO step of 100 crystals without the reward: sampling, log-probabilities, three updates.

    python benchmarks/ppo.py [--model DIR] [--threads 2] [--steps 3] [--out FILE]

Prints JSON. Without --model the full 4,833,575-parameter network is drawn at random; its crystals are then longer
than a trained model's (see `sites_mean`), so the figure is on the safe side. Required: at most 5 s on 2 cores; the
published code takes 1,320 s for the same work on the same kind of machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import finish

from crystalforge.model.batch import TokenBatch
from crystalforge.model.build import build_model
from crystalforge.model.checkpoint import load_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.rl import losses
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.policy import improve, make_plan, measure
from crystalforge.rl.rollout import Source
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import TorchEngine

REQUIRED = 5.0  # seconds
REFERENCE = 1320.0  # seconds: the published code, same batch and machine type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a trained model; default: random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="steps to time, after one to warm up")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--piece-tokens", type=int, default=FinetuneConfig().piece_tokens)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    policy = load_model(arguments.model).model if arguments.model else CrystalFormer(ModelConfig()).eval()
    policy = policy.to(arguments.device)
    frozen = build_model(policy.config).to(arguments.device).eval().requires_grad_(False)
    frozen.load_state_dict(policy.state_dict())
    config = FinetuneConfig(batch_size=arguments.batch_size, piece_tokens=arguments.piece_tokens)
    optimizer = OptimizerConfig(learning_rate=config.learning_rate, gradient_clip=config.gradient_clip)
    engine = TorchEngine(policy, optimizer)
    source = Source(np.full(230, 1 / 230), seed=0)
    seconds: dict[str, list[float]] = {"sample": [], "log_probs": [], "update": []}
    sites, cpu = [], []
    for step in range(arguments.steps + 1):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        tokens, _ = source.draw(policy, step * config.batch_size, config.batch_size)
        drawn = time.perf_counter()
        batch = TokenBatch.from_tokens(tokens)
        plan = make_plan(tokens.n_sites, np.arange(len(tokens)), piece_tokens=config.piece_tokens)
        old = measure(policy, batch, plan).total
        base = measure(frozen, batch, plan, as_in_update=False).total
        measured = time.perf_counter()
        reward = torch.from_numpy(np.random.default_rng(step).normal(size=len(tokens))).float()
        advantage = reward - config.tau * (old - base)

        def loss(rows: torch.Tensor, now: torch.Tensor, old=old, advantage=advantage) -> torch.Tensor:
            return losses.ppo(now, old[rows], advantage[rows], config.clip)

        health = improve(
            engine,
            batch,
            plan,
            old,
            loss,
            passes=config.inner_steps,
            clip=config.clip,
        )
        assert health.optimizer_steps == config.inner_steps
        assert health.first_ratio_error == 0
        if step > 0:
            seconds["sample"].append(drawn - begun)
            seconds["log_probs"].append(measured - drawn)
            seconds["update"].append(time.perf_counter() - measured)
            cpu.append(time.process_time() - begun_cpu)
            sites.append(float(tokens.n_sites.mean()))
    phases = {name: float(np.median(values)) for name, values in seconds.items()}
    total = float(np.median(np.sum(list(seconds.values()), axis=0)))
    result = {
        "benchmark": "ppo",
        "seconds_per_step": total,
        "cpu_seconds_per_step": float(np.median(cpu)),  # over all cores: what a busy machine cannot stretch much
        "seconds": phases,
        "batch_size": config.batch_size,
        "inner_steps": config.inner_steps,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "sites_mean": float(np.mean(sites)),
        "threads": arguments.threads,
        "piece_tokens": config.piece_tokens,
        "required_seconds": REQUIRED,
        "reference_seconds": REFERENCE,
        "speed_up": REFERENCE / total,
        "passed": total <= REQUIRED,
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
