"""What makes pre-training learn more in the same time: variants of a recipe, one change at a time, equal CPU time.

    python recipes/pretraining_study.py recipes/mp-anneal.yaml work/more work/pretraining --cpu-minutes 1

Each variant trains on work/data for as many CPU minutes (process time of one thread), its rate rising over 40 steps and
falling over the last 40 % of the time, and is validated on every EIGHTH crystal of the validation split. Results go
to work/pretraining/NAME-SEED.json; what is there is not done again. Prints the table, Markdown. `--only` names
variants, `--union` is a second data set, of more crystals.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from crystalforge.common.files import write_json
from crystalforge.data.batches import epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.training.config import PretrainConfig
from crystalforge.training.engine import TorchEngine
from crystalforge.training.pretrain import training_rows
from crystalforge.training.steps import derived_seed, evaluate, train_step

EIGHTH = 8
WARMUP, FALL = 40, 0.4
PUBLISHED: dict[str, Any] = {"layout": "tokens", "norm": "layer", "gated": False, "coord_head": "published"}
EARLIER = PUBLISHED | {
    "width": 128, "head_size": 32, "embedding": 32, "coord_frequencies": 5, "coord_components": 16,
    "lattice_components": 4,
}  # fmt: skip
ONE_GROUP = {"bucket_groups": 1, "accumulation": 1}
# What differs from the recipe: in the model, in pre-training, in the optimiser.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "recipe": ({}, {}, {}),
    "earlier recipe": (EARLIER, ONE_GROUP | {"batch_size": 128, "redescribe": False}, {"learning_rate": 1.5e-3}),
    "five tokens a site": ({"layout": "tokens"}, {}, {}),
    "published shape": (
        PUBLISHED | {"layers": 16, "heads": 16, "head_size": 64, "width": 64, "embedding": 32},
        {},
        {"learning_rate": 1e-3},
    ),
    "layer norm": ({"norm": "layer"}, {}, {}),
    "GELU without gate": ({"gated": False}, {}, {}),
    "softplus coordinates": ({"coord_head": "published"}, {}, {}),
    "width 128": ({"width": 128, "head_size": 32}, {}, {}),
    "width 256": ({"width": 256, "head_size": 64}, {}, {}),
    "Muon": ({}, {}, {"kind": "muon"}),
    "batch 32": ({}, {"batch_size": 32}, {}),
    "batch 288": ({}, {"batch_size": 288}, {}),
    "one length per batch": ({}, ONE_GROUP, {}),
    "no dropout": ({"dropout": 0.0}, {}, {}),
    "one description": ({}, {"redescribe": False}, {}),
    "rate 1e-3": ({}, {}, {"learning_rate": 1e-3}),
    "rate 4e-3": ({}, {}, {"learning_rate": 4e-3}),
    "bfloat16": ({}, {}, {"precision": "bfloat16"}),
}  # fmt: skip


def main() -> None:
    """Read the arguments, train what is not there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML with sections model and pretrain")
    parser.add_argument("data", type=Path, help="output of ingest")
    parser.add_argument("out", type=Path, help="directory for the results")
    parser.add_argument("--cpu-minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS, "union"], help="variants; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--union", type=Path, help="output of ingest of more crystals, for the variant `union`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(arguments.recipe.read_text())
    names = arguments.only or [*VARIANTS, *(["union"] if arguments.union else [])]
    for name in names:
        for seed in range(arguments.seeds):
            file = arguments.out / f"{name.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                store = TokenStore.open((arguments.union if name == "union" else arguments.data) / "store")
                held = TokenStore.open(arguments.data / "store")
                write_json(file, measured(name, settings, store, held, 60 * arguments.cpu_minutes, seed))
    print(table([json.loads(file.read_text()) for file in sorted(arguments.out.glob("*.json"))]))


def measured(
    name: str, settings: dict[str, Any], store: TokenStore, held: TokenStore, seconds: float, seed: int
) -> dict[str, Any]:
    """Train one variant for so many seconds of this thread; give its validation and how far it came."""
    network, training, optimizer = VARIANTS.get(name, ({}, {}, {}))
    pretraining = settings["pretrain"] | training
    pretraining["optimizer"] = pretraining["optimizer"] | optimizer
    model_config, config = ModelConfig.model_validate(settings["model"] | network), PretrainConfig(**pretraining)
    torch.manual_seed(derived_seed(seed, -1))
    engine = TorchEngine(build_model(model_config), config.optimizer)
    began, seen = time.process_time(), 0
    for rows in (rows for epoch in count() for rows in batches(store, config, seed, epoch)):
        passed = (time.process_time() - began) / seconds
        if passed >= 1:
            break
        rise, fall = (engine.steps + 1) / WARMUP, (1 - passed) / FALL
        engine.learning_rate = config.optimizer.learning_rate * min(1.0, rise, fall)
        train_step(engine, store, rows, config, seed)
        seen += len(rows)
    result = evaluate(engine.model, held, held.split("val")[::EIGHTH])
    return {
        "name": name,
        "seed": seed,
        "cpu_seconds": seconds,
        "weights": sum(p.numel() for p in engine.model.parameters()),
        "steps": engine.steps,
        "crystals": seen,
        **{key.removeprefix("val/"): value for key, value in result.items()},
    }


def batches(store: TokenStore, config: PretrainConfig, seed: int, epoch: int) -> Any:
    """One epoch's batches as the training loop takes them."""
    return epoch_batches(
        store,
        "train",
        config.batch_size,
        seed,
        epoch,
        bucket=config.bucket,
        groups=config.bucket_groups,
        chosen=training_rows(store, config),
    )


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, the best first."""
    lines = [
        "| variant | seed | weights | crystals seen | letters | elements | coordinates | lattice | NLL |",
        "|---" * 9 + "|",
    ]
    for found in sorted(results, key=lambda found: found["nll"]):
        factors = " | ".join(f"{found[f'nll_{name}']:.2f}" for name in ("wyckoff", "element", "coords", "lattice"))
        counts = f"{found['weights']:,} | {found['crystals']:,}"
        lines.append(f"| {found['name']} | {found['seed']} | {counts} | {factors} | {found['nll']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
