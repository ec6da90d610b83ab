"""Train a property predictor: MatGL's M3GNet on structures with one or several numbers each.

The defaults are those of the dielectric predictor in appendix D of Cao & Wang (arXiv:2504.02367): the six components of
the total dielectric tensor, crystals with a component outside [-10, 100] left out, split 8:1:1, L1 loss, batches of 64,
Adam with learning rate 1e-4. M3GNet's output does not turn with the crystal, so components are predicted in the frame
that the structures come in; the reward uses their mean eigenvalue, which has no frame.

Deviations: targets are standardised by the training split (the loss is then of one size for any property), and the
epoch with the best validation error is kept.

Shapes: B crystals of a batch, K targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.common.files import atomic_directory, sha256_file, write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import unsuitable
from crystalforge.potentials.predictor_config import PredictorConfig

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class PredictorResult:
    """Where the model lies, and how good it is.

    metrics: mae_<split> over all targets, mae_<split>_<target>, baseline_mae_test (predicting the training median),
    n_*. parity: the table behind a parity plot, one row per crystal: index, split, <target>, <target>_predicted.
    """

    model_dir: Path
    parity: Path
    metrics: dict[str, float]


def train_predictor(
    config: PredictorConfig, out: Path, *, seed: int, on_metrics: Callable[[int, dict[str, float]], None] | None = None
) -> PredictorResult:
    """Train, and write out/model (a MatGL folder), out/parity.csv and out/metrics.json.

    `MatGLProperty(out / "model")` and the rewards `property` and `dielectric` load the model. Same seed, data and
    device: same model. Raises InputError when the data lack columns, or too few rows remain.
    """
    try:
        from matgl.data.transformer import Normalizer
        from matgl.models import M3GNet, TransformedTargetModel
    except ImportError as error:
        raise missing_extra("matgl", "potentials", error) from error
    from matgl.config import DEFAULT_ELEMENTS

    from crystalforge.potentials.matgl import graph_of

    torch.manual_seed(seed)
    network = M3GNet(
        element_types=DEFAULT_ELEMENTS, is_intensive=True, readout_type="set2set", ntargets=len(config.targets),
        units=config.units, nblocks=config.blocks, cutoff=config.cutoff, threebody_cutoff=min(4.0, config.cutoff),
    )  # fmt: skip
    network = network.to(config.device)
    types = {z: index for index, z in enumerate(_atomic_numbers(DEFAULT_ELEMENTS))}
    crystals, targets, index, left_out = read_examples(config, frozenset(types))
    split = split_rows(len(crystals), config.fractions, seed)
    mean, std = targets[split["train"]].mean(axis=0), targets[split["train"]].std(axis=0)
    std = np.where(std > 0, std, 1.0)
    standard = torch.as_tensor((targets - mean) / std, dtype=torch.float32, device=config.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    rng = np.random.default_rng(seed)

    def predict(rows: np.ndarray) -> torch.Tensor:
        chosen = [crystals[int(row)] for row in rows]
        graph = graph_of(chosen, network, types, torch.device(config.device), forces=False, stress=False)
        return network(g=graph).reshape(len(rows), len(config.targets))

    def error_of(name: str) -> float:
        with torch.no_grad():
            parts = [(predict(rows) - standard[rows]).abs() for rows in _batches(split[name], config.batch_size)]
        return float(torch.cat(parts).mean())

    best, best_state = np.inf, {key: value.clone() for key, value in network.state_dict().items()}
    with Progress("predictor", total=config.epochs, unit="epoch") as progress:
        for epoch in range(config.epochs):
            network.train()
            losses = []
            for rows in _batches(rng.permutation(split["train"]), config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = (predict(rows) - standard[rows]).abs().mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            network.eval()
            validation = error_of("val")
            if validation < best:
                best, best_state = validation, {key: value.clone() for key, value in network.state_dict().items()}
            if on_metrics is not None:
                on_metrics(epoch, {"train_l1": float(np.mean(losses)), "val_l1": validation})
            progress.update(note=f"L1 train {np.mean(losses):.3f}, val {validation:.3f}")
    network.load_state_dict(best_state)
    network.eval()
    with torch.no_grad():
        everything = np.arange(len(crystals))
        predicted = torch.cat([predict(rows) for rows in _batches(everything, config.batch_size)])
    values = predicted.double().cpu().numpy() * std + mean
    metrics = _metrics(config.targets, targets, values, split) | {f"n_{key}": float(n) for key, n in left_out.items()}
    scaling: list[Any] = [torch.as_tensor(part, dtype=torch.float32) for part in (mean, std)]
    transformer = Normalizer(*scaling)
    with atomic_directory(out) as temporary:
        # TransformedTargetModel records its parts' constructor arguments; these go through torch.save and JSON.
        TransformedTargetModel(network.cpu(), transformer).save(
            temporary / "model",
            metadata={"aggregate": "source", "targets": list(config.targets), "data_sha256": sha256_file(config.data)},
        )
        _write_parity(temporary / "parity.csv", config.targets, index, split, targets, values)
        write_json(temporary / "metrics.json", metrics)
    return PredictorResult(out / "model", out / "parity.csv", metrics)


def read_examples(
    config: PredictorConfig, elements: frozenset[int]
) -> tuple[list[Crystal], Float64[np.ndarray, "B K"], Int64[np.ndarray, " B"], dict[str, int]]:
    """Crystals, targets, their row numbers in the file, and how many rows were left out for which reason."""
    if not config.data.is_file():
        raise InputError("no such file", source=config.data, remedy="give a parquet or CSV of structures and targets")
    rows = _read_rows(config.data)
    columns = set(rows[0]) if rows else set()
    structure = next((kind for kind, need in STRUCTURE_COLUMNS.items() if need <= columns), None)
    missing = sorted(set(config.targets) - columns)
    if structure is None or missing:
        raise InputError(
            f"has the columns {', '.join(sorted(columns)) or 'none'}",
            source=config.data,
            remedy="give lattice + atomic_numbers + frac_coords, or cif, or poscar, and the targets "
            + ", ".join(config.targets),
        )
    crystals, targets, index = [], [], []
    left_out = {"out_of_bounds": 0, "unusable": 0}
    low, high = config.bounds or (-np.inf, np.inf)
    for number, row in enumerate(rows):
        values = np.array([row[name] for name in config.targets], dtype=np.float64)
        if not ((values >= low) & (values <= high)).all():  # NaN is outside too
            left_out["out_of_bounds"] += 1
            continue
        crystal = _read_structure(row, structure)
        if crystal is None or unsuitable(crystal, elements) is not None or _lonely(crystal, config.cutoff):
            left_out["unusable"] += 1
            continue
        crystals.append(crystal)
        targets.append(values)
        index.append(number)
    if len(crystals) < 10:
        raise InputError(
            f"{len(crystals)} usable rows remain of {len(rows)} ({left_out})",
            source=config.data,
            remedy="give at least 10 rows, or widen `bounds`",
        )
    return crystals, np.stack(targets), np.array(index, dtype=np.int64), left_out


STRUCTURE_COLUMNS = {
    "arrays": {"lattice", "atomic_numbers", "frac_coords"},
    "cif": {"cif"},
    "poscar": {"poscar"},
}
"""Ways of giving a structure, by the columns that they need."""


def split_rows(count: int, fractions: tuple[float, float, float], seed: int) -> dict[str, Int64[np.ndarray, " _"]]:
    """Disjoint random rows per split; each split gets at least one row."""
    order = np.random.default_rng(seed).permutation(count)
    shares = np.array(fractions) / sum(fractions)
    n_val, n_test = (max(1, round(share * count)) for share in shares[1:])
    ends = (count - n_val - n_test, count - n_test)
    return dict(zip(SPLITS, np.split(order, ends), strict=True))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_table(path).to_pylist()
    from pyarrow import csv

    return csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True)).to_pylist()


def _read_structure(row: dict[str, Any], kind: Any) -> Crystal | None:
    if kind == "arrays":
        values = [row[name] for name in ("lattice", "atomic_numbers", "frac_coords")]
        # A CSV holds the arrays as JSON.
        return Crystal.of(*(json.loads(value) if isinstance(value, str) else value for value in values))
    from pymatgen.core import Structure

    try:
        return Crystal.from_structure(Structure.from_str(row[kind], fmt=kind))
    except (ValueError, IndexError, KeyError):  # what pymatgen raises for files it cannot read
        return None


def _lonely(crystal: Crystal, cutoff: float) -> bool:
    from crystalforge.potentials.neighbors import neighbor_list

    return len(np.unique(neighbor_list([crystal], cutoff).center)) < len(crystal)


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _atomic_numbers(symbols: Sequence[str]) -> list[int]:
    from pymatgen.core import Element

    return [Element(symbol).Z for symbol in symbols]


def _metrics(
    names: Sequence[str], targets: np.ndarray, values: np.ndarray, split: dict[str, np.ndarray]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for part, rows in split.items():
        error = np.abs(values[rows] - targets[rows])
        metrics[f"mae_{part}"] = float(error.mean())
        metrics[f"n_{part}"] = float(len(rows))
        for column, name in enumerate(names):
            metrics[f"mae_{part}_{name}"] = float(error[:, column].mean())
    median = np.median(targets[split["train"]], axis=0)
    metrics["baseline_mae_test"] = float(np.abs(targets[split["test"]] - median).mean())
    return metrics


def _write_parity(
    path: Path,
    names: Sequence[str],
    index: np.ndarray,
    split: dict[str, np.ndarray],
    targets: np.ndarray,
    values: np.ndarray,
) -> None:
    part_of = {int(row): part for part, rows in split.items() for row in rows}
    header = ["index", "split", *(column for name in names for column in (name, f"{name}_predicted"))]
    lines = [",".join(header)]
    for row in range(len(index)):
        pairs = [f"{number:.6g}" for pair in zip(targets[row], values[row], strict=True) for number in pair]
        lines.append(",".join([str(index[row]), part_of[row], *pairs]))
    path.write_text("\n".join(lines) + "\n")
