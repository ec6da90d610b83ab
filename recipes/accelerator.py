"""Pre-training on a borrowed accelerator: bfloat16, a few minutes, weights and benchmark figures brought back.

    python recipes/accelerator.py recipes/mp-start.yaml work/data work/accelerator --minutes 9
    python recipes/accelerator.py recipes/mp-start.yaml work/data work/trial --minutes 0.2 --tiny --device cpu

The machine needs this checkout and work/data/store alone (MP-20: 5 MB), and leaves all it makes in the last directory,
below 64 MiB: base/ as `pretrain` leaves it, without the snapshots, benchmarks/*.json, and summary.json. The recipe's
network grows by `--scale` in width and its batch is `--batch`; the number of steps follows from the first ones' speed,
so that the rate falls to zero when the time is up. One minute of the time is kept for the benchmarks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from crystalforge.common.errors import InputError
from crystalforge.common.files import write_json
from crystalforge.data.store import TokenStore
from crystalforge.model.config import ModelConfig
from crystalforge.training.config import PretrainConfig
from crystalforge.training.pretrain import pretrain
from crystalforge.training.ranks import Ranks

LARGEST = 64 * 2**20  # bytes that travel, either way
PROBE = 40  # steps by which the speed is found
TINY = {"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8}
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Read the arguments, train, run the benchmarks, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML with sections seed, model and pretrain")
    parser.add_argument("data", type=Path, help="output of ingest")
    parser.add_argument("out", type=Path, help="directory for everything that is to come back")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="times the recipe's width and size of heads")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tiny", action="store_true", help="a network and benchmarks for a trial")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no GPU that PyTorch can use", source="--device", remedy="give --device cpu")
    settings = yaml.safe_load(arguments.recipe.read_text())
    store = TokenStore.open(arguments.data / "store")
    check_size(arguments.data / "store")
    began = time.monotonic()
    network = settings["model"] | (TINY if arguments.tiny else {})
    network |= {name: arguments.scale * network[name] for name in ("width", "head_size")}
    result = train(ModelConfig(**network), settings, store, arguments, began)
    figures = benchmarks(arguments)
    check_size(arguments.out)
    summary = {"training": result, "benchmarks": figures, "seconds": round(time.monotonic() - began, 1)}
    write_json(arguments.out / "summary.json", summary)
    print(json.dumps(summary, indent=2))


def train(
    model: ModelConfig, settings: dict[str, Any], store: TokenStore, arguments: argparse.Namespace, began: float
) -> dict[str, float]:
    """Train for the time that is left but for the benchmarks' minute; give the last metrics."""
    seconds = 60 * arguments.minutes * (0.8 if arguments.tiny else 1) - (0 if arguments.tiny else 60)
    base = arguments.out / "base"
    options = settings["pretrain"] | {"batch_size": arguments.batch, "piece_tokens": 1 << 17, "epochs": None}
    optimizer = options.pop("optimizer") | {"precision": "bfloat16"}
    ranks = Ranks(device="cuda:0" if arguments.device == "cuda" else arguments.device)

    def run(place: Path, steps: int, most: float | None = None, **schedule: int) -> dict[str, float]:
        config = PretrainConfig.model_validate(
            options | {"steps": steps, "max_seconds": most, "validate_every": steps, "optimizer": optimizer | schedule}
        )
        return pretrain(model, config, store, place, seed=settings["seed"], ranks=ranks).metrics

    # The first pays for the start; the others, both with one validation, differ by their steps alone.
    speeds = []
    for number, steps in enumerate((PROBE // 4, PROBE // 4, PROBE)):
        place, clock = arguments.out / f"probe-{number}", time.monotonic()
        run(place, steps)
        speeds.append(time.monotonic() - clock)
        shutil.rmtree(place)
    difference = speeds[2] - speeds[1]
    per_step = difference / (PROBE - PROBE // 4) if difference > 0 else speeds[2] / PROBE
    left = max(1.0, seconds - (time.monotonic() - began))
    steps = max(1, int(0.9 * left / per_step))
    metrics = run(base, steps, left, linear_steps=steps, warmup_steps=max(1, steps // 20))
    shutil.rmtree(base / "snapshots")
    return metrics


def benchmarks(arguments: argparse.Namespace) -> dict[str, Any]:
    """The project's own, on the same device and network, as subprocesses."""
    out = arguments.out / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    few = ["--steps", "1", "--repeats", "1", "--batch", "8"] if arguments.tiny else []
    commands = {
        "train": ["--store", str(arguments.data / "store"), "--device", arguments.device, *few],
        "ppo": ["--model", str(arguments.out / "base" / "model"), "--device", arguments.device]
        + (["--steps", "1", "--batch-size", "8"] if arguments.tiny else []),
        "sampler": ["--recipe", str(arguments.recipe), "--device", arguments.device]
        + (["--crystals", "16", "--workers", "1", "--repeats", "1"] if arguments.tiny else ["--workers", "1"]),
    }
    found: dict[str, Any] = {}
    for name, options in commands.items():
        # A benchmark that fails must not cost the weights.
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options], capture_output=True, text=True
        )
        found[name] = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-2000:]}
        write_json(out / f"{name}.json", found[name])
    return found


def check_size(folder: Path) -> None:
    """InputError when a directory is more than can travel."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > LARGEST:
        raise InputError(f"{size / 2**20:.0f} MiB, at most {LARGEST >> 20} travel", source=folder)


if __name__ == "__main__":
    main()
