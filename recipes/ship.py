"""A trained base model into the package, under a name: weights, fingerprints of its training set, model card.

python recipes/ship.py work/base work/data src/crystalforge/data/models/mp20
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.files import atomic_directory, write_json
from crystalforge.data.store import TokenStore
from crystalforge.model.checkpoint import load_model

FACTORS = ("wyckoff", "element", "coords", "lattice")


def main() -> None:
    """Read the arguments, write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="output of pretrain")
    parser.add_argument("data", type=Path, help="output of ingest that it was trained on")
    parser.add_argument("out", type=Path, help="directory of the shipped model; its name is the model's")
    arguments = parser.parse_args()
    ship(arguments.base, arguments.data, arguments.out)


def ship(base: Path, data: Path, out: Path) -> None:
    """Copy what a user needs of `base`; leaves out the state that serves to resume, and whose run it was."""
    record = json.loads((base / "stage.json").read_text())
    store = TokenStore.open(data / "store")
    loaded = load_model(base / "model")
    weights = sum(value.numel() for value in loaded.model.parameters())
    with atomic_directory(out) as place:
        shutil.copytree(base / "model", place / "model")
        shutil.copyfile(base / "metrics.jsonl", place / "metrics.jsonl")
        write_json(place / "stage.json", record | {"mlflow_run_id": None})
        fingerprint = np.asarray(store.column("fingerprint")[store.split("train")])
        np.save(place / "model" / "fingerprints.npy", np.unique(second_half(fingerprint)))
        (place / "model" / "README.md").write_text(card(out.name, record, store.manifest["counts"], weights))


def second_half(fingerprint: np.ndarray) -> np.ndarray:
    """The 8 bytes of a fingerprint that cover formula, space group and orbits, as integers."""
    return np.ascontiguousarray(fingerprint[:, 8:]).view(np.uint64).ravel()


def card(name: str, record: dict[str, Any], counts: dict[str, int], weights: int) -> str:
    """The model card, Markdown."""
    network, training, metrics = record["config"]["model"], record["config"]["pretrain"], record["metrics"]
    rows = "".join(f"| {factor} | {metrics[f'val/nll_{factor}']:.2f} |\n" for factor in FACTORS)
    return f"""# {name}

Autoregressive generator of crystals given a space group: Wyckoff letters, elements, coordinates, lattice
(arXiv 2403.15734), a small configuration: {network["layers"]} layers of width {network["width"]}, {weights:,} weights.

    crystalforge sample --model {name} -n 100 -o crystals --cif
    crystalforge run --recipe {name}

## Training

{counts["train"]:,} crystals of MP-20's training split, by maximum likelihood: {metrics["steps"]:.0f} steps of
{training["batch_size"]}, {metrics["seconds"] / 60:.0f} minutes on one core of an AMD EPYC that other work shared, no
GPU, seed {record["config"]["seed"]}. Parameters: `recipes/{name}-pretrain.yaml`.

Negative log-likelihood on {counts["val"]:,} crystals of the validation split that it never saw, in nats per crystal:

| factor | NLL |
|---|---|
{rows}| all | {metrics["val/nll"]:.2f} |

## Limits

At most 20 atoms in the primitive cell, space groups and elements as MP-20 has them; the 80 % of MP-20's rows whose
structure and split could be established. It is several times smaller than the published models, and was trained on a
sixtieth of the crystals of the largest: see `docs/results.md` for what its crystals are worth. Whatever it writes is a
candidate for a calculation, not a discovery.

## Data and licence

Trained on crystals of the Materials Project (A. Jain et al., APL Materials 1, 011002 (2013), doi:10.1063/1.4812323;
https://materialsproject.org), licence CC-BY 4.0, in the selection MP-20 (T. Xie et al., ICLR 2022, arXiv 2110.06197).
No structure of it is contained here; `fingerprints.npy` holds a hash of formula, space group and orbits of each, by
which a crystal that was in the training set is told from a new one. The weights are a work derived from these data and
come under CC-BY 4.0: name the Materials Project when you use them. The program is under Apache-2.0.
"""


if __name__ == "__main__":
    main()
