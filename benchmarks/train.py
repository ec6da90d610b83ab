"""Crystals per second of maximum-likelihood training, full configuration.

    python benchmarks/train.py [--store DIR] [--precision bfloat16] [--threads 2] [--device cpu] [--out FILE]
    python benchmarks/train.py --recipe recipes/mp-start.yaml --precision float32    # the shape of a recipe

Prints JSON. Without --store the crystals are made up, with the numbers of sites that MP-20 has; what a crystal holds
does not change the time. Required: at least 100/s on 2 CPU cores; the published code makes 5.1/s at batch 100 on the
same kind of machine. `limit` states how far the matrix products alone could go on this machine in this precision.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from _common import finish

from crystalforge.crystal.tokens import Tokens
from crystalforge.data.batches import epoch_batches
from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import TOKENS_PER_SITE
from crystalforge.model.sites import TOKENS_OF_SITE
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.engine import TorchEngine
from crystalforge.training.steps import train_step

REQUIRED, REFERENCE = 100.0, 5.1  # crystals per second on 2 cores: ours at least; the published code
# Crystals of 1, 2, ... 20 sites in a random sample of 9,000 of MP-20
MP20_SITES = (56, 992, 3229, 1756, 966, 704, 328, 278, 192, 161, 58, 89, 15, 36, 21, 25, 8, 42, 5, 39)


def made_up_store(folder: Path, rows: int) -> TokenStore:
    """Crystals of space group 1 with MP-20's numbers of sites."""
    random = np.random.default_rng(0)
    shares = np.array(MP20_SITES) / sum(MP20_SITES)
    n_sites = random.choice(np.arange(1, len(MP20_SITES) + 1), size=rows, p=shares)
    is_site = np.arange(21) < n_sites[:, None]
    tokens = Tokens(
        np.ones(rows, np.int32),
        is_site.astype(np.int32),
        np.where(is_site, random.integers(1, 90, is_site.shape), 0).astype(np.int32),
        random.random((rows, 21, 3)) * is_site[..., None],
        np.concatenate([random.normal(2.5, 0.2, (rows, 3)), random.normal(1.6, 0.1, (rows, 3))], axis=1),
    )
    ids = [str(number) for number in range(rows)]
    content = Rows.of(tokens, ids, split=np.zeros(rows, np.int8))
    TokenStore.write(folder, [content], rows=rows, sites=int(n_sites.sum()), id_bytes=sum(map(len, ids)))
    return TokenStore.open(folder)


def product_rate(precision: str, device: str) -> float:
    """FLOP/s of the model's largest product, 2560 tokens x 64 by 64 x 3072, in this precision."""
    dtype = getattr(torch, precision)
    a, b = torch.randn(2560, 64, dtype=dtype, device=device), torch.randn(64, 3072, dtype=dtype, device=device)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        _ = (a @ b).sum().item()
        times.append(time.perf_counter() - began)
    return 2 * 2560 * 64 * 3072 / min(times)


def flops_per_token(config: ModelConfig, tokens: float) -> float:
    """Multiply-adds x 2 of one forward pass: maps of every block, and attention over half of `tokens`."""
    inner, width = config.heads * config.head_size, config.width
    maps = 4 * inner * width + (3 if config.gated else 2) * config.hidden * width
    return 2.0 * config.layers * (maps + inner * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="token store to train on; default: made-up crystals")
    parser.add_argument("--recipe", type=Path, help="YAML whose section `model` is the network; default: published")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10, help="steps per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000, help="made-up crystals")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        if arguments.store:
            store = TokenStore.open(arguments.store)
        else:
            store = made_up_store(Path(folder) / "store", arguments.rows)
        settings = yaml.safe_load(arguments.recipe.read_text())["model"] if arguments.recipe else {}
        model_config = ModelConfig.model_validate(settings)
        per_site = TOKENS_OF_SITE if model_config.layout == "sites" else TOKENS_PER_SITE
        optimizer = OptimizerConfig(precision=arguments.precision)
        config = PretrainConfig(batch_size=arguments.batch, optimizer=optimizer, piece_tokens=1 << 20)
        engine = TorchEngine(build_model(model_config).to(arguments.device), optimizer)
        plan = epoch_batches(store, "train", arguments.batch, seed=0, epoch=0)
        rates, processor, tokens, crystals = [], [], 0, 0
        for repeat in range(arguments.repeats + 1):  # the first warms up
            began, began_cpu, done = time.perf_counter(), time.process_time(), 0
            for _ in range(arguments.steps):
                rows = next(plan)
                train_step(engine, store, rows, config, seed=0)
                n_sites = np.asarray(store.column("n_sites")[rows])
                done, tokens, crystals = (
                    done + len(rows),
                    tokens + per_site * int(n_sites.sum()) + len(rows),
                    crystals + len(rows),
                )
            if repeat:
                rates.append(done / (time.perf_counter() - began))
                processor.append(done / (time.process_time() - began_cpu))
        mean_tokens = tokens / crystals
        products = product_rate(arguments.precision, arguments.device)
        flops = 3 * mean_tokens * flops_per_token(model_config, mean_tokens)
        result = {
            "benchmark": "train",
            "samples_per_s": statistics.median(rates),
            "spread": [min(rates), max(rates)],
            "samples_per_cpu_s": statistics.median(processor),
            "required": REQUIRED,
            "reference": REFERENCE,
            "batch": arguments.batch,
            "tokens_per_crystal": mean_tokens,
            "parameters": sum(p.numel() for p in engine.model.parameters()),
            "precision": arguments.precision,
            "limit": {
                "flops_per_crystal": flops,
                "product_flops_per_s": products,
                "samples_per_s": products / flops,
            },
            "peak_memory_mb": (
                torch.cuda.max_memory_allocated() / 2**20
                if arguments.device.startswith("cuda")
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            ),
            "repeats": arguments.repeats,
            "machine": {
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
            },
        }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
