"""Twenty steps of pre-training, PPO, balance and balance with a surrogate, of small models in float64:
golden_worker.py OUT [--faults].

Leaves OUT/pretrain.json, OUT/ppo.json, OUT/balance.json, OUT/surrogate.json: some metrics of every step,
and of each tensor of the model that comes out its norm and its projection on a fixed wave. With --faults also
OUT/faults.json: for each small fault that is planted, the metrics of the first FAULT_STEPS steps.

The stored trajectories are renewed on purpose by `python tests/parity/golden_worker.py tests/parity/golden`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.likelihood import LogProb
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.parity import fixture_tokens, load_fixture
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward, ElementScreen
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.pretrain import pretrain

STEPS, FAULT_STEPS = 20, 3
FIXTURE = Path(__file__).with_name("model_tiny.npz")
MODEL = ModelConfig(
    layers=2, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8, coord_components=3,
    lattice_components=2, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
WORTH = {z: 1 - abs(z - 14) / 20 for z in range(1, 60)}
# Every setting that decides a step is named, so that a default may change without a new trajectory.
PRETRAIN = PretrainConfig(
    epochs=None, steps=STEPS, batch_size=12, accumulation=1, piece_tokens=400, bucket=True, bucket_groups=1,
    law="exact", redescribe=False, validate_every=10, log_every=1, checkpoint_every=100,
    optimizer=OptimizerConfig(
        kind="adamw", learning_rate=5e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01, gradient_clip=30.0,
        decay=0.0, warmup_steps=4, cosine_steps=40, linear_steps=None, ema_decay=0.8,
    ),
)  # fmt: skip
COMMON = {
    "batch_size": 16, "tau": 0.1, "learning_rate": 1e-3, "warmup_steps": 3, "inner_steps": 3, "minibatches": 2,
    "kl_stop": None, "checkpoint_every": 100, "piece_tokens": 300,
    "monitor": MonitorConfig(every=10, max_gap=None, min_unique=None, max_kl=None, max_worse=None),
}  # fmt: skip
TUNING: dict[str, dict[str, Any]] = {
    "ppo": COMMON
    | {
        "algorithm": "ppo", "filter": False, "fade": 1.0, "average": 0.0, "gradient_clip": 2.0, "clip": 0.2,
        "baseline_decay": 0.95, "normalize_advantage": False,
    },
    "balance": COMMON
    | {
        "algorithm": "balance", "filter": True, "fade": 0.3, "average": 0.9, "gradient_clip": 15.0, "kept": 12,
        "refused": 0.25, "lowest": -0.5,
    },
    "surrogate": COMMON
    | {
        "algorithm": "balance", "filter": True, "fade": 0.3, "gradient_clip": 15.0, "lowest": -0.5, "batch_size": 26,
        "learning_rate": 2e-3,
        "surrogate": {"waves": 2, "batch_size": 40, "minibatch": 20, "spacegroup_rate": 0.3},
    },
}  # fmt: skip
KINDS = ("pretrain", *TUNING)
METRICS = {
    "pretrain": ("train/nll", "train/nll_wyckoff", "train/nll_element", "train/nll_coords", "train/nll_lattice",
                 "gradient_norm", "learning_rate", "val/nll"),
    "ppo": ("reward/mean", "kl/base", "objective", "objective/max", "entropy/wyckoff", "entropy/element",
            "entropy/coords", "entropy/lattice", "update/loss", "gradient/norm", "kl/step", "ratio/largest"),
}  # fmt: skip
METRICS["balance"] = (*METRICS["ppo"], "filtered/share", "filtered/objective", "lesson/kept")
METRICS["surrogate"] = (
    *METRICS["ppo"], "filtered/share", "filtered/objective", "surrogate/error", "surrogate/known", "spacegroups/kl",
)  # fmt: skip


def trained(folder: Path, steps: int, change: dict[str, Any]) -> Path:
    """Pre-training on the crystals of the model's fixture."""
    fixture = load_fixture(FIXTURE)
    tokens = fixture_tokens(fixture)[fixture["kind"] < 2]
    tokens = tokens[np.random.default_rng(0).integers(len(tokens), size=48)]
    rows = Rows.of(tokens, [str(n) for n in range(48)], split=np.repeat(np.array([0, 1], np.int8), [40, 8]))
    id_bytes = sum(map(len, rows.ids))
    TokenStore.write(folder / "store", [rows], rows=len(rows), sites=rows.wyckoff.size, id_bytes=id_bytes)
    optimizer = PRETRAIN.optimizer.model_copy(update=change)
    config = PRETRAIN.model_copy(update={"steps": steps, "optimizer": optimizer})
    return pretrain(MODEL, config, TokenStore.open(folder / "store"), folder / "out", seed=5).model_dir


def tuned(kind: str, folder: Path, steps: int, change: dict[str, Any]) -> Path:
    """Reinforcement, on a reward that costs nothing."""
    torch.manual_seed(0)
    save_model(folder / "base", CrystalFormer(MODEL), info={})
    weights = np.zeros(230)
    weights[[1, 61, 220, 224, 226]] = 1.0  # groups 2, 62, 221, 225, 227: free coordinates and cells among them
    config = FinetuneConfig.model_validate(TUNING[kind] | {"steps": steps} | change)
    reward = ElementReward(WORTH, other=-0.8)
    return finetune(
        config, folder / "base", reward, weights, folder / "out", seed=3, screen=ElementScreen(110)
    ).model_dir


def trajectory(kind: str, steps: int = STEPS, change: dict[str, Any] | None = None) -> dict[str, Any]:
    """Metrics by name, a list over steps; and of each tensor at the end [norm, projection]."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model_dir = (trained if kind == "pretrain" else lambda *a: tuned(kind, *a))(folder, steps, change or {})
        lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
        state = load_model(model_dir).model.state_dict()
    metrics = {name: [line[name] for line in lines if name in line] for name in METRICS[kind]}
    return {"metrics": metrics, "weights": {name: described(value) for name, value in state.items()}}


def described(tensor: torch.Tensor) -> list[float]:
    """Norm, and projection on a wave: a permutation or a change of sign shows as well as a change of size."""
    flat = tensor.double().reshape(-1)
    return [float(flat.norm()), float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64)))]


@contextmanager
def without_gradient(factor: str) -> Iterator[None]:
    """One of the four factors of the likelihood counts, but nothing is learned through it."""
    whole = LogProb.total

    def total(self: LogProb) -> torch.Tensor:
        return sum(value.detach() if name == factor else value for name, value in self.factors().items())  # type: ignore

    LogProb.total = property(total)  # type: ignore
    try:
        yield
    finally:
        LogProb.total = whole  # type: ignore


Fault = tuple[str, str, dict[str, Any], Callable[[], AbstractContextManager[None]]]
FAULTS: tuple[Fault, ...] = (
    ("pretrain", "learning rate 2 % off", {"learning_rate": 1.02 * 5e-3}, nullcontext),
    ("pretrain", "momentum forgets a hundredth faster", {"betas": (0.89, 0.999)}, nullcontext),
    ("pretrain", "no gradient through the cell", {}, lambda: without_gradient("lattice")),
    ("ppo", "learning rate 2 % off", {"learning_rate": 1.02 * 1e-3}, nullcontext),
    ("ppo", "price of the KL 1 % off", {"tau": 0.101}, nullcontext),
    ("ppo", "baseline forgets a hundredth faster", {"baseline_decay": 0.94}, nullcontext),
    ("ppo", "no gradient through the cell", {}, lambda: without_gradient("lattice")),
    ("ppo", "no gradient through the coordinates", {}, lambda: without_gradient("coords")),
    ("balance", "learning rate 2 % off", {"learning_rate": 1.02 * 1e-3}, nullcontext),
    ("balance", "price of the KL 1 % off", {"tau": 0.101}, nullcontext),
    ("balance", "rate fades to 0.29 rather than 0.3", {"fade": 0.29}, nullcontext),
    ("surrogate", "learning rate 2 % off", {"learning_rate": 1.02 * 2e-3}, nullcontext),
    ("surrogate", "price of the KL 1 % off", {"tau": 0.101}, nullcontext),
    ("balance", "no gradient through the letters", {}, lambda: without_gradient("wyckoff")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--faults", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Rounding of 1e-16, grown over twenty steps, stays far from what any fault makes; that of float32 does not.
    torch.set_default_dtype(torch.float64)
    for kind in KINDS:
        text = json.dumps(trajectory(kind) | {"made_with": {"torch": torch.__version__}}, indent=1)
        (options.out / f"{kind}.json").write_text(text + "\n")
    if options.faults:
        found = []
        for kind, words, change, plant in FAULTS:
            with plant():
                found.append([kind, words, trajectory(kind, FAULT_STEPS, change)["metrics"]])
        (options.out / "faults.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
