"""CPU minutes until the quickstart's base model reaches a stated quality: the project's headline figure of speed.

    OMP_NUM_THREADS=1 python benchmarks/quickstart.py

Quality: validation negative log-likelihood of the embedded crystals' validation split, in nats per crystal, under the
weights that would be handed over. Time: processor time of training and of its validations, from the first step; data
are tokenised before the clock runs. Whatever makes the model learn more per minute moves it (network, optimiser,
batches, precision, kernels), and so does `params.yaml`, whose `model` and `pretrain` sections it takes as they are but
for the intervals of validation. The law must stay one in which the figures can be compared: likelihood of the same
crystals, one description each.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from _common import finish

from crystalforge.config import load
from crystalforge.data.store import TokenStore
from crystalforge.stages.ingest import ingest
from crystalforge.training.pretrain import pretrain

ROOT = Path(__file__).resolve().parents[1]
QUALITY = 12.0  # nats per crystal; the whole of the quickstart reaches 9.2, half of it 12.8
EVERY = 64  # steps


class Reached(Exception):
    """The quality is there, and the rest of the training is of no interest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", type=float, default=QUALITY, help="nats per crystal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = load(ROOT / "params.yaml")
    curve: list[dict[str, float]] = []
    began = 0.0

    def look(step: int, metrics: dict[str, float]) -> None:
        if "val/nll" not in metrics:
            return
        curve.append({"step": step, "cpu_s": round(time.process_time() - began, 2), "nll": metrics["val/nll"]})
        if metrics["val/nll"] <= arguments.quality:
            raise Reached

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ingest(config, place / "data", data_version="")
        settings = config.pretrain.model_copy(update={"validate_every": EVERY})
        store = TokenStore.open(place / "data" / "store")
        began = time.process_time()
        with contextlib.suppress(Reached):
            pretrain(config.model, settings, store, place / "base", seed=arguments.seed, on_metrics=look)
    reached = curve[-1]["nll"] <= arguments.quality
    finish(
        {
            "benchmark": "quickstart",
            "quality": arguments.quality,
            "reached": reached,
            "cpu_minutes": round(curve[-1]["cpu_s"] / 60, 3) if reached else None,
            "steps": curve[-1]["step"],
            "curve": curve,
            "seed": arguments.seed,
        },
        arguments.out,
    )


if __name__ == "__main__":
    main()
