"""The average of the weights of models of one shape, validated: one model in which their noise has cancelled.

    python recipes/average.py work/data work/mp work/base/model work/first/model work/second/model work/third/model

Models that began with the same weights lie in one valley, and their mean is better than each (P. Izmailov et al.,
arXiv 1803.05407; M. Wortsman et al., arXiv 2203.05482). Writes work/mp as `pretrain` leaves it: model, stage.json.
work/data is the output of ingest with the crystals of the last part and their validation split; space groups are as
in `--groups`, another output of ingest or a model, where that is given. A model may be a snapshot of an unfinished run,
too. `--record` names the stage.json of the runs that the models came from: the first one's settings and course become
those of the average, and `averaged` in stage.json has the settings of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from crystalforge.common.files import write_json
from crystalforge.data.store import TokenStore
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.training.steps import evaluate

PREFIXES = ("engine::average::", "engine::model::")  # of a model's weights in a snapshot: their moving average if kept
PARTS = ("config", "inputs", "metrics")  # of a run's record: what it was trained with, on what, how far it came


def main() -> None:
    """Read the arguments, average, validate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="output of ingest")
    parser.add_argument("out", type=Path, help="directory for the average")
    parser.add_argument("models", type=Path, nargs="+", help="directories of weights, the first a finished model")
    parser.add_argument(
        "--groups", type=Path, help="output of ingest, or directory of weights, whose space groups count"
    )
    parser.add_argument(
        "--record", type=Path, nargs="*", default=[], help="stage.json of the runs, the first one first"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(arguments.models[0])
    states = [weights(path) for path in arguments.models]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    loaded.model.load_state_dict(mean)
    store = TokenStore.open(arguments.data / "store")
    found = evaluate(loaded.model, store, store.split("val"))
    info: dict[str, Any] = loaded.info | {
        "averaged": len(states),
        "metrics": found,
        "data_hash": store.manifest.get("data_hash"),
        "spacegroup_weights": groups_of(arguments.groups or arguments.data),
    }
    digest = save_model(arguments.out / "model", loaded.model, info=info)
    log = arguments.record[0].parent / "metrics.jsonl" if arguments.record else arguments.out / "none"
    if log.exists():
        shutil.copyfile(log, arguments.out / "metrics.jsonl")
    write_json(arguments.out / "stage.json", record_of(arguments.record, len(states), found, digest))
    print(json.dumps(found, indent=2))


def groups_of(place: Path) -> list[float]:
    """Shares of the space groups: what a model brings along, or those of a training split."""
    if (place / "store").is_dir():
        return TokenStore.open(place / "store").spacegroup_weights("train").tolist()
    return load_model(place).info["spacegroup_weights"]


def record_of(runs: list[Path], models: int, metrics: dict[str, float], digest: str) -> dict[str, Any]:
    """What stage.json says of the average: the first run's record, with the average's own metrics and content."""
    records = [json.loads(path.read_text()) for path in runs]
    first = records[0] if records else {"stage": "pretrain", "config": {}}
    averaged = {"models": models, "runs": [{name: record.get(name) for name in PARTS} for record in records]}
    return first | {"content": digest, "metrics": metrics, "averaged": averaged, "mlflow_run_id": None}


def weights(path: Path) -> dict[str, Tensor]:
    """Of a model's directory, or of a snapshot."""
    snapshot = path / "tensors.safetensors"
    if not snapshot.exists():
        return load_model(path).model.state_dict()
    tensors = safetensors.torch.load_file(snapshot)
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors))
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


if __name__ == "__main__":
    main()
