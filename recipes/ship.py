"""A trained base model into the package, under a name: weights, fingerprints of its training set, model card.

    python recipes/ship.py work/base work/data src/crystalforge/data/models/mp20 --before work/stable \\
      --quality work/quality.json

`--training` is a file whose text, Markdown, stands for the card's paragraph on data and training, if these were others.
`--before` names the runs whose weights this one began with, the first one first, or a shipped model for all of them:
stage.json has their settings and metrics under `before`, metrics.jsonl their course. `--quality` is what
`benchmarks/generator.py` printed, for the card.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, write_json
from crystalforge.data.fingerprint import orbit_codes
from crystalforge.data.store import TokenStore
from crystalforge.model.checkpoint import load_model

FACTORS = ("wyckoff", "element", "coords", "lattice")
LARGEST = 20 * 2**20  # bytes of one shipped model
KEPT = ("config", "inputs", "metrics", "averaged", "before")  # of the record of a run that another one began with


def main() -> None:
    """Read the arguments, write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="output of pretrain")
    parser.add_argument("data", type=Path, help="output of ingest that it was trained on")
    parser.add_argument("out", type=Path, help="directory of the shipped model; its name is the model's")
    parser.add_argument("--before", type=Path, nargs="*", default=[], help="what `base` started from, the first first")
    parser.add_argument("--training", type=Path, help="Markdown: what it was trained on, and how")
    parser.add_argument("--quality", type=Path, help="what benchmarks/generator.py printed of the model's crystals")
    arguments = parser.parse_args()
    ship(
        arguments.base,
        arguments.data,
        arguments.out,
        before=arguments.before,
        quality=arguments.quality,
        training=arguments.training,
    )


def ship(
    base: Path,
    data: Path,
    out: Path,
    *,
    before: Sequence[Path] = (),
    quality: Path | None = None,
    training: Path | None = None,
) -> None:
    """Copy what a user needs of `base`; leaves out the state that serves to resume, and whose run it was.

    InputError when the model is larger than may be shipped.
    """
    record = json.loads((base / "stage.json").read_text())
    earlier = [json.loads((run / "stage.json").read_text()) for run in before]
    store = TokenStore.open(data / "store")
    loaded = load_model(base / "model")
    weights = sum(value.numel() for value in loaded.model.parameters())
    measured = None if quality is None else json.loads(quality.read_text())
    with atomic_directory(out) as place:
        shutil.copytree(base / "model", place / "model")
        (place / "metrics.jsonl").write_text(course([*before, base]))
        write_json(place / "stage.json", whole(record, earlier))
        fingerprint = np.asarray(store.column("fingerprint")[store.split("train")])
        np.save(place / "model" / "fingerprints.npy", np.unique(orbit_codes(fingerprint)))
        said = None if training is None else training.read_text().strip()
        text = card(out.name, record, earlier, store.manifest["counts"], weights, measured, said)
        (place / "model" / "README.md").write_text(text)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if size > LARGEST:
            raise InputError(f"{size / 2**20:.1f} MiB, at most {LARGEST >> 20} may be shipped", source=base)


def whole(record: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record that ships: its own settings and those of the runs that it began with, not whose MLflow run it was."""
    parts = [{name: run[name] for name in KEPT if name in run} for run in earlier]
    past = parts[0].pop("before", []) + parts if parts else []
    return record | ({"before": past} if past else {}) | {"mlflow_run_id": None}


def course(runs: Sequence[Path]) -> str:
    """The training log of several runs as one: steps, seconds and epochs go on. An average has none of its own."""
    lines: list[dict[str, float]] = []
    for run in runs:
        file = run / "metrics.jsonl"
        own = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {name: lines[-1][name] if lines else 0 for name in ("step", "seconds", "epoch")}
        lines += [line | {name: line[name] + value for name, value in done.items()} for line in own]
    return "".join(json.dumps(line) + "\n" for line in lines)


def card(
    name: str,
    record: dict[str, Any],
    earlier: Sequence[dict[str, Any]],
    counts: dict[str, int],
    weights: int,
    quality: dict[str, Any] | None,
    said: str | None = None,
) -> str:
    """The model card, Markdown."""
    if said is None:
        said = trained(name, record, earlier, counts)
    network, metrics = record["config"]["model"], record["metrics"]
    rows = "".join(f"| {factor} | {metrics[f'val/nll_{factor}']:.2f} |\n" for factor in FACTORS)
    return f"""# {name}

Autoregressive generator of crystals given a space group: Wyckoff letters, elements, coordinates, lattice
(arXiv 2403.15734), with two tokens a site instead of five: {network["layers"]} layers of width {network["width"]},
{weights:,} weights.

    crystalforge sample --model {name} -n 100 -o crystals --cif
    crystalforge run --recipe mp20 --set base={name}

## Training

{said}

Negative log-likelihood on {counts["val"]:,} crystals of the validation split that it never saw, in nats per crystal:

| factor | NLL |
|---|---|
{rows}| all | {metrics["val/nll"]:.2f} |

It is the likelihood of one description of each crystal, the tokeniser's. In training each site's point was drawn anew
among the equivalent ones of its orbit every time, so that the model spreads its probability over all of them.
{"" if quality is None else quality_text(quality)}
## Limits

At most 20 atoms in the primitive cell, space groups and elements as MP-20 has them; the 80 % of MP-20's rows whose
structure and split could be established. It saw a sixtieth of the crystals of the largest published model: see
`docs/results.md` for what its own are worth. Whatever it writes is a candidate for a calculation, not a discovery.

## Data and licence

Trained on crystals of the Materials Project (A. Jain et al., APL Materials 1, 011002 (2013), doi:10.1063/1.4812323;
https://materialsproject.org), licence CC-BY 4.0, in the selection MP-20 (T. Xie et al., ICLR 2022, arXiv 2110.06197).
No structure of it is contained here; `fingerprints.npy` holds a hash of formula, space group and orbits of each, by
which a crystal that was in the training set is told from a new one. The weights are a work derived from these data and
come under CC-BY 4.0: name the Materials Project when you use them. The program is under Apache-2.0.
"""


def trained(name: str, record: dict[str, Any], earlier: Sequence[dict[str, Any]], counts: dict[str, int]) -> str:
    """What it was trained on, and how, Markdown."""
    training, metrics = record["config"]["pretrain"], record["metrics"]
    steps, minutes = metrics["steps"], metrics["seconds"] / 60
    parts = ""
    if earlier:
        first = earlier[-1]["metrics"]
        parts = f" ({first['steps']:.0f} at a constant rate, {steps:.0f} while it fell to zero)"
        steps, minutes = steps + first["steps"], minutes + first["seconds"] / 60
    seen = steps * training["batch_size"] / counts["train"]
    return f"""{counts["train"]:,} crystals of MP-20's training split, by maximum likelihood: {steps:.0f} steps of
{training["batch_size"]}{parts}; {seen:.1f} times each crystal, {minutes:.0f} minutes on one core of an AMD EPYC
(no AMX, no AVX-512) that other work shared, no GPU, float32, seed {record["config"]["seed"]}. Commands and parameters:
`recipes/{name}-pretrain.yaml`; the course of training: `metrics.jsonl` beside this directory."""


def quality_text(quality: dict[str, Any]) -> str:
    """What the model's crystals are like."""
    lines = "".join(f"| {name} | {share:.1f} |\n" for name, share in quality["percent"].items())
    return f"""
## What it writes

{quality["crystals"]:,} crystals at temperature 1, nothing refused, seed {quality["seed"]}:

| | % |
|---|---|
{lines}"""


if __name__ == "__main__":
    main()
