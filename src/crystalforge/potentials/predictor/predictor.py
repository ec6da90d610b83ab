"""Train a property predictor: MatGL's M3GNet on structures with one or several numbers each.

The defaults are those of the dielectric predictor in appendix D of Cao & Wang (arXiv:2504.02367): the six components of
the total dielectric tensor, crystals with a component outside [-10, 100] left out, split 8:1:1, L1 loss, batches of 64,
Adam with learning rate 1e-4. M3GNet's output does not turn with the crystal, so components are predicted in the frame
that the structures come in; the reward uses their mean eigenvalue, which has no frame.

Deviations: targets are centred and scaled by the training split; the epoch with the best validation error is kept;
`initial` may start from another property's weights, `split` keep polymorphs together, `extra` add rows to the training
split (all three are off by default).

Shapes: B crystals of a batch, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.common.files import atomic_directory, atomic_file, sha256_file, sha256_json, write_json
from crystalforge.common.progress import Progress
from crystalforge.potentials.predictor.config import PredictorConfig
from crystalforge.potentials.predictor.data import Examples, read_examples
from crystalforge.potentials.weights import digest_of

THREEBODY_CUTOFF = 4.0  # Å; MatGL's default for M3GNet
NEW_LAYERS = "final_layer."  # what is not taken over from `initial`: the layers that turn features into its property


@dataclass(frozen=True)
class PredictorResult:
    """Where the model lies, and how good it is.

    metrics: mae_<split> over all targets, mae_<split>_<target>, baseline_mae_test (predicting the training median),
    n_*. parity: the table behind a parity plot, one row per crystal: table (0: `data`, 1, 2, ...: `extra`), index (row
    of that table), split, <target>, <target>_predicted.
    """

    model_dir: Path
    parity: Path
    metrics: dict[str, float]


def train_predictor(
    config: PredictorConfig, out: Path, *, seed: int, on_metrics: Callable[[int, dict[str, float]], None] | None = None
) -> PredictorResult:
    """Train, and write out/model (a MatGL folder), out/parity.csv and out/metrics.json.

    `MatGLProperty(out / "model")` and the rewards `property` and `dielectric` load the model. Same seed, data and
    device: same model. The state after each epoch is kept beside `out`: a killed training goes on with the next epoch
    and ends with the model that it would have had. Raises InputError when the data lack columns, or too few rows
    remain.
    """
    try:
        from matgl.data.transformer import Normalizer
        from matgl.models import TransformedTargetModel
    except ImportError as error:
        raise missing_extra("matgl", "potentials", error) from error

    from crystalforge.potentials.matgl import graph_of

    torch.manual_seed(seed)
    network, aggregate = make_network(config)
    network = network.to(config.device)
    types = {z: index for index, z in enumerate(_atomic_numbers(network.element_types))}
    examples = read_examples(config, frozenset(types), cutoff=float(network.cutoff), seed=seed)
    crystals, targets, split = examples.crystals, examples.targets, examples.split
    mean, std = _scales(targets[split["train"]], config.scaling)
    standard = torch.as_tensor((targets - mean) / std, dtype=torch.float32, device=config.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)

    def predict(rows: np.ndarray) -> torch.Tensor:
        chosen = [crystals[int(row)] for row in rows]
        graph = graph_of(chosen, network, types, torch.device(config.device), forces=False, stress=False)
        return network(g=graph).reshape(len(rows), len(config.targets))

    def error_of(name: str) -> float:
        with torch.no_grad():
            parts = [(predict(rows) - standard[rows]).abs() for rows in _batches(split[name], config.batch_size)]
        return float(torch.cat(parts).mean())

    checkpoint = _Checkpoint(out.with_name(f"{out.name}.checkpoint"), config, network, targets, seed)
    first, best, best_state = checkpoint.restore(network, optimizer)
    with Progress("predictor", total=config.epochs, start=first, unit="epoch") as progress:
        for epoch in range(first, config.epochs):
            network.train()
            losses = []
            # An order of its own for each epoch, so that a resumed training needs no generator's state.
            order = np.random.default_rng((seed, epoch)).permutation(split["train"])
            for rows in _batches(order, config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = (predict(rows) - standard[rows]).abs().mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            network.eval()
            validation = error_of("val")
            if validation < best:
                best, best_state = validation, {key: value.clone() for key, value in network.state_dict().items()}
            checkpoint.save(epoch + 1, network, optimizer, best, best_state)
            if on_metrics is not None:
                on_metrics(epoch, {"train_l1": float(np.mean(losses)), "val_l1": validation})
            progress.update(note=f"L1 train {np.mean(losses):.3f}, val {validation:.3f}")
    network.load_state_dict(best_state)
    network.eval()
    with torch.no_grad():
        everything = np.arange(len(crystals))
        predicted = torch.cat([predict(rows) for rows in _batches(everything, config.batch_size)])
    values = predicted.double().cpu().numpy() * std + mean
    metrics = _metrics(config.targets, examples, values)
    scaling: list[Any] = [torch.as_tensor(part, dtype=torch.float32) for part in (mean, std)]
    transformer = Normalizer(*scaling)
    with atomic_directory(out) as temporary:
        # TransformedTargetModel records its parts' constructor arguments; these go through torch.save and JSON.
        TransformedTargetModel(network.cpu(), transformer).save(
            temporary / "model",
            metadata={
                "aggregate": aggregate,
                "targets": list(config.targets),
                "data_sha256": sha256_file(config.data),
                "elements": sorted({int(z) for row in split["train"] for z in crystals[row].numbers}),
            },
        )
        _write_parity(temporary / "parity.csv", config.targets, examples, values)
        write_json(temporary / "metrics.json", metrics)
    checkpoint.remove()
    return PredictorResult(out / "model", out / "parity.csv", metrics)


def make_network(config: PredictorConfig) -> tuple[Any, str]:
    """An M3GNet with one output per target, new or with the weights of `config.initial`, and where it sums messages.

    Raises InputError when `initial` is no M3GNet for an intensive property.
    """
    from matgl.config import DEFAULT_ELEMENTS
    from matgl.models import M3GNet

    from crystalforge.potentials.matgl import aggregate_into_destination, load_matgl

    if config.initial is None:
        network = M3GNet(
            element_types=DEFAULT_ELEMENTS, is_intensive=True, readout_type="set2set", ntargets=len(config.targets),
            units=config.units, nblocks=config.blocks, cutoff=config.cutoff,
            threebody_cutoff=min(THREEBODY_CUTOFF, config.cutoff),
        )  # fmt: skip
        return network, "source"
    loaded, aggregate = load_matgl(config.initial)
    base = getattr(loaded, "model", loaded)
    if type(base).__name__ != "M3GNet" or not base.is_intensive or base.readout_type != "set2set":
        raise InputError(
            f"is a {type(base).__name__} that a predictor cannot start from",
            source=config.initial,
            remedy="give an M3GNet property model, such as one of formation energies",
        )
    network = M3GNet(
        element_types=base.element_types, is_intensive=True, readout_type="set2set", ntargets=len(config.targets),
        units=base.units, nblocks=base.n_blocks, max_n=base.max_n, max_l=base.max_l,
        cutoff=float(base.cutoff), threebody_cutoff=float(base.threebody_cutoff),
    )  # fmt: skip
    known = {key: value for key, value in base.state_dict().items() if not key.startswith(NEW_LAYERS)}
    answer = network.load_state_dict(known, strict=False)
    assert all(key.startswith(NEW_LAYERS) for key in answer.missing_keys), answer.missing_keys
    if aggregate == "destination":
        aggregate_into_destination(network)
    return network, aggregate


class _Checkpoint:
    """The state after the latest epoch, in one file that is whole or absent."""

    def __init__(
        self, path: Path, config: PredictorConfig, network: torch.nn.Module, targets: np.ndarray, seed: int
    ) -> None:
        settings = config.model_dump(mode="json", exclude={"data", "extra", "initial", "epochs", "device"})
        tables = [sha256_file(file) for file in (config.data, *config.extra)]
        # The untrained weights stand for `initial` and for the release of MatGL.
        start = digest_of(network.state_dict(), {})
        self._path, self._device = path, config.device
        self._key = sha256_json([settings, tables, start, list(targets.shape), seed])

    def restore(self, network: Any, optimizer: torch.optim.Optimizer) -> tuple[int, float, dict[str, torch.Tensor]]:
        """The next epoch, the best validation error and its weights; the start where there is no state of this run."""
        start = {key: value.clone() for key, value in network.state_dict().items()}
        if not self._path.exists():
            return 0, float("inf"), start
        state = torch.load(self._path, map_location=self._device, weights_only=True)
        if state["key"] != self._key:
            return 0, float("inf"), start
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return state["epoch"], state["best"], state["best_state"]

    def save(
        self, epoch: int, network: Any, optimizer: torch.optim.Optimizer, best: float, best_state: dict[str, Any]
    ) -> None:
        """`epoch`: how many are done."""
        with atomic_file(self._path) as temporary:
            torch.save(
                {
                    "key": self._key,
                    "epoch": epoch,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "best_state": best_state,
                },
                temporary,
            )

    def remove(self) -> None:
        """The training is over."""
        self._path.unlink(missing_ok=True)


def _scales(targets: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each target, both [K]."""
    mean, std = targets.mean(axis=0), targets.std(axis=0)
    if how == "together":
        std = np.full_like(std, np.sqrt((std**2).mean()))
    return mean, np.where(std > 0, std, 1.0)


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _atomic_numbers(symbols: Sequence[str]) -> list[int]:
    from pymatgen.core import Element

    return [Element(symbol).Z for symbol in symbols]


def _metrics(names: Sequence[str], examples: Examples, values: np.ndarray) -> dict[str, float]:
    metrics: dict[str, float] = {}
    targets, split = examples.targets, examples.split
    for part, rows in split.items():
        error = np.abs(values[rows] - targets[rows])
        metrics[f"mae_{part}"] = float(error.mean())
        metrics[f"n_{part}"] = float(len(rows))
        for column, name in enumerate(names):
            metrics[f"mae_{part}_{name}"] = float(error[:, column].mean())
    median = np.median(targets[split["train"]], axis=0)
    metrics["baseline_mae_test"] = float(np.abs(targets[split["test"]] - median).mean())
    metrics["n_extra"] = float((examples.table > 0).sum())
    return metrics | {f"n_{key}": float(n) for key, n in examples.left_out.items()}


def _write_parity(path: Path, names: Sequence[str], examples: Examples, values: np.ndarray) -> None:
    part_of = {int(row): part for part, rows in examples.split.items() for row in rows}
    header = ["table", "index", "split", *(column for name in names for column in (name, f"{name}_predicted"))]
    lines = [",".join(header)]
    for row in range(len(examples.index)):
        pairs = zip(examples.targets[row], values[row], strict=True)
        numbers = [f"{number:.6g}" for pair in pairs for number in pair]
        lines.append(",".join([str(examples.table[row]), str(examples.index[row]), part_of[row], *numbers]))
    path.write_text("\n".join(lines) + "\n")
