"""Crystals per second of the sampler at full size, with lengths as in MP-20. Prints one JSON object.

    python benchmarks/sampler.py                     # two processes, bfloat16
    python benchmarks/sampler.py --precision float32 --workers 1 --crystals 512
    python benchmarks/sampler.py --recipe recipes/mp-start.yaml --precision float32    # the shape of a recipe

A model with random weights does not stop where a trained one does. So the number of sites of each crystal is drawn
from MP-20's histogram and enforced by a mask on the letters (stop is allowed there and only there); all else is the
sampler as it is. Space groups follow MP-20's 24 most frequent ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _common import finish

from crystalforge.crystal import wyckoff
from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import TOKENS_PER_SITE
from crystalforge.model.sampling.draws import Sharpenings
from crystalforge.model.sampling.random import SPACEGROUP_EVENT, Streams
from crystalforge.model.sampling.sampler import Precision, Sampler, draw_spacegroups
from crystalforge.model.sites import TOKENS_OF_SITE

# Inequivalent sites (0, 1, ...) of 1,500 of MP-20's structures drawn at random, by spglib at symprec 0.01 Å.
SITES = [0, 6, 152, 555, 291, 147, 111, 65, 42, 30, 25, 16, 17, 3, 10, 2, 3, 3, 7, 1, 14]
# The 24 most frequent space groups of 38,785 of MP-20's structures (27,316 of them).
GROUPS = {225: 5735, 139: 1910, 62: 1827, 194: 1768, 12: 1701, 166: 1522, 63: 1379, 221: 1240, 123: 874, 2: 827,
          164: 791, 14: 782, 129: 754, 189: 743, 15: 711, 216: 691, 71: 627, 191: 578, 148: 502, 1: 497, 38: 483,
          187: 473, 8: 454, 140: 447}  # fmt: skip
LENGTH_EVENT = SPACEGROUP_EVENT + 1


class Lengths:
    """A mask with the interface of `constraints_masks.Masks`: each crystal has the length drawn for it."""

    def __init__(self, seed: int) -> None:
        self._streams, self._cumulative = Streams(seed), np.cumsum(SITES) / sum(SITES)

    def lengths(self, index: torch.Tensor) -> torch.Tensor:
        uniform = self._streams.uniforms(index, LENGTH_EVENT)[:, 0].cpu().numpy()
        return torch.from_numpy(np.searchsorted(self._cumulative, uniform, side="right")).to(index.device)

    def start(self, index: torch.Tensor) -> torch.Tensor:
        return self.lengths(index)  # a crystal's state is the number of sites it still needs

    def letters(self, slot: int, spacegroup: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        letter = torch.arange(28, device=cell.device)
        # A group all of whose positions are used up may still stop; the general position never is.
        return (letter == 0) == (cell == 0)[:, None]

    def elements(self, slot: int, spacegroup: torch.Tensor, letter: torch.Tensor, cell: torch.Tensor,
                 earlier: torch.Tensor) -> torch.Tensor:  # fmt: skip
        return torch.ones(len(cell), 119, dtype=torch.bool, device=cell.device)

    def advance(self, slot: int, spacegroup: torch.Tensor, letter: torch.Tensor, element: torch.Tensor,
                cell: torch.Tensor) -> torch.Tensor:  # fmt: skip
        return cell - 1


def configuration(recipe: Path | None) -> ModelConfig:
    """The network of a recipe; of none: the published one."""
    return ModelConfig.model_validate(yaml.safe_load(recipe.read_text())["model"] if recipe else {})


def tokens_of_site(config: ModelConfig) -> int:
    """Tokens that a site takes in this layout."""
    return TOKENS_OF_SITE if config.layout == "sites" else TOKENS_PER_SITE


def sampler(precision: Precision, config: ModelConfig, device: str) -> Sampler:
    """A model with spread random weights (the initialiser's would make every head trivial)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.9 / module.in_features**0.5)
        if config.layout == "tokens":
            model.wyckoff_in.weight[:, -1] *= 0.05
    model = model.to(device)
    masks: Any = Lengths(1)  # has what the sampler asks of masks
    return Sampler(model, Streams(0), Sharpenings(), "exact", masks, precision)


def worker(number: int, workers: int, options: argparse.Namespace, barrier: Any, results: Any) -> None:
    """Warm up, then draw this worker's share once per repeat, all workers starting together."""
    config = configuration(options.recipe)
    machine = sampler(options.precision, config, options.device)
    weights = np.zeros(230)
    weights[np.array(list(GROUPS)) - 1] = list(GROUPS.values())
    share = options.crystals // workers
    groups = draw_spacegroups(weights, share, seed=2, first_index=number * share)
    for repeat in range(options.repeats + 1):
        barrier.wait()
        began, sites = time.perf_counter(), 0
        cpu = time.process_time()
        for begin in range(0, share, options.batch_size):
            part = groups[begin : begin + options.batch_size]
            for samples in machine.wave(part, number * share + begin + np.arange(len(part))):
                sites += int(samples.tokens.n_sites.sum())
        seconds = time.perf_counter() - began
        barrier.wait()
        if repeat:  # the first is the warm-up
            results.put((repeat, seconds, time.process_time() - cpu, share, tokens_of_site(config) * sites + share))


def limits(config: ModelConfig, tokens_per_crystal: float) -> dict[str, Any]:
    """Work of one token of one crystal, by arithmetic: what the products and the cache take at least."""
    inner = config.heads * config.head_size
    width, layers = config.width, config.layers
    products = 2 * layers * (2 * width * inner + inner // config.head_size * width * width
                             + (3 if config.gated else 2) * config.hidden * width)  # fmt: skip
    rng = np.random.default_rng(0)
    lengths = tokens_of_site(config) * rng.choice(len(SITES), 10_000, p=np.array(SITES) / sum(SITES)) + 1
    seen = float((lengths * (lengths + 1) / 2).sum() / lengths.sum())  # positions that a token attends to, on average
    key_bytes = 4 * inner
    return {
        "flop_per_token_products": products,
        "flop_per_token_attention": int(2 * layers * seen * (inner + config.heads * width)),
        "mean_positions_attended": round(seen, 2),
        "cache_bytes_read_per_token": int(layers * seen * (key_bytes + 2 * width)),
        "tokens_per_crystal": round(tokens_per_crystal, 2),
    }


def measured_limits(precision: str) -> dict[str, float]:
    """What this core does now: products of the model's shapes, and reading keys as attention does."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x, w = torch.randn(512, 64).to(dtype), torch.randn(2048, 64).to(dtype)
    keys, query = torch.randn(4, 8192, 10, 64), torch.randn(8192, 64, 1)

    def best(function: Any, repeats: int = 15) -> float:
        times = []
        for _ in range(repeats):
            began = time.thread_time()
            function()
            times.append(time.thread_time() - began)
        return min(times)

    with torch.inference_mode():
        product = best(lambda: torch.nn.functional.linear(x, w))
        read = best(lambda: [torch.bmm(page, query) for page in keys])
    return {"gflops": 2 * 512 * 64 * 2048 / product / 1e9, "key_gb_per_s": keys.numel() * 4 / read / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="YAML whose section `model` is the network; default: published")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--crystals", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    wyckoff.representatives()  # build the tables once, before the clock runs
    context = get_context("spawn")
    barrier, results = context.Barrier(options.workers), context.Queue()
    processes = [
        context.Process(target=worker, args=(number, options.workers, options, barrier, results))
        for number in range(options.workers)
    ]
    for process in processes:
        process.start()
    rows = [results.get() for _ in range(options.workers * options.repeats)]
    for process in processes:
        process.join()
    rates, tokens, cpu, processor = [], [], [], []
    for repeat in range(1, options.repeats + 1):
        mine = [row for row in rows if row[0] == repeat]
        seconds = max(row[1] for row in mine)
        rates.append(sum(row[3] for row in mine) / seconds)
        tokens.append(sum(row[4] for row in mine) / seconds)
        cpu.append(sum(row[2] for row in mine) / sum(row[4] for row in mine))
        processor.append(sum(row[3] for row in mine) / sum(row[2] for row in mine))
    crystals, all_tokens = sum(row[3] for row in rows), sum(row[4] for row in rows)
    work = limits(configuration(options.recipe), all_tokens / crystals)
    core = measured_limits(options.precision)
    seconds_products = work["flop_per_token_products"] / (core["gflops"] * 1e9)
    seconds_cache = work["cache_bytes_read_per_token"] / (core["key_gb_per_s"] * 1e9)
    per_token = statistics.median(cpu)
    finish(
        {
            "benchmark": "sampler",
            "structures_per_s": round(statistics.median(rates), 1),
            "structures_per_s_spread": [round(min(rates), 1), round(max(rates), 1)],
            "structures_per_cpu_s": round(statistics.median(processor), 1),  # what a busy machine cannot stretch much
            "tokens_per_s": round(statistics.median(tokens)),
            "core_seconds_per_token": per_token,
            "limit": {
                **work,
                "core_gflops_now": round(core["gflops"], 1),
                "core_key_gb_per_s_now": round(core["key_gb_per_s"], 1),
                "seconds_per_token_products": seconds_products,
                "seconds_per_token_cache": seconds_cache,
                "times_above_limit": round(per_token / (seconds_products + seconds_cache), 2),
            },
            "precision": options.precision,
            "workers": options.workers,
            "crystals": options.crystals,
            "batch_size": options.batch_size,
            "repeats": options.repeats,
            "lengths": "drawn from MP-20's histogram of sites and enforced by a mask; random weights",
        }
    )


if __name__ == "__main__":
    main()
