"""Maximum likelihood on a token store: the loop, its batches and its metrics.

The order of the data is a function of (seed, epoch), dropout a function of (seed, step), and a snapshot holds all
else: a run killed at any instant and called again ends with the same weights, bit for bit.

Declared deviations from the published training (CrystalFormer, arXiv 2403.15734): batches hold crystals of similar
length; an epoch's last, smaller batch is used, not dropped; dropout masks differ between samples; the objective is
the exact law unless `law="reference"` is asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_json
from crystalforge.common.progress import Progress
from crystalforge.data.batches import batches_per_epoch, epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.model.batch import TokenBatch
from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.distributions import Law
from crystalforge.model.likelihood import impossible, log_prob
from crystalforge.model.network import TOKENS_PER_SITE, CrystalFormer
from crystalforge.training.config import PretrainConfig
from crystalforge.training.engine import Engine, TorchEngine
from crystalforge.training.snapshots import load_snapshot, save_snapshot

FACTORS = ("wyckoff", "element", "coords", "lattice")
CHECK_ROWS = 10_000  # rows looked at in one go before training: bounds memory

OnMetrics = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class PretrainResult:
    """Where the model is, and the last metrics of the run (nats per crystal, seconds, steps)."""

    model_dir: Path
    metrics: dict[str, float]


@dataclass
class Cursor:
    """How far a run has come; part of every snapshot."""

    epoch: int = 0
    batch: int = 0  # of the epoch: the next one to train on
    seconds: float = 0.0
    samples: int = 0
    best: float | None = None  # lowest validation loss so far
    stale: int = 0  # validations since then
    done: bool = False
    metrics_bytes: int = 0  # length of metrics.jsonl when the snapshot was taken


def pretrain(
    model_config: ModelConfig,
    config: PretrainConfig,
    store: TokenStore,
    out: Path,
    *,
    seed: int,
    on_metrics: OnMetrics | None = None,
    device: str = "cpu",
) -> PretrainResult:
    """Train a model on the store's training split; leaves `out/model`, `out/metrics.jsonl`, `out/snapshots`.

    Called again with the same `out` it continues where it stopped; with more epochs or steps it goes on from there.
    `on_metrics(step, metrics)` sees what goes to metrics.jsonl.

    Raises InputError when the split is empty, holds crystals that the law forbids, or `out` belongs to another run.
    """
    _check_data(store, model_config, config)
    torch.manual_seed(_seed(seed, -1))
    engine = TorchEngine(CrystalFormer(model_config).to(device), config.optimizer)
    run = Run(
        config,
        store,
        out,
        engine,
        seed,
        on_metrics or (lambda step, metrics: None),
        _identity(model_config, config, store, seed),
    )
    metrics = run.loop()
    model = CrystalFormer(model_config)
    model.load_state_dict(engine.averaged_state())
    model_dir = out / "model"
    save_model(
        model_dir,
        model,
        info={
            "stage": "pretrain",
            "seed": seed,
            "steps": engine.steps,
            "config": config.model_dump(mode="json"),
            "data_hash": store.manifest.get("data_hash"),
            "spacegroup_weights": store.spacegroup_weights("train").tolist(),
            "metrics": metrics,
        },
    )
    return PretrainResult(model_dir, metrics)


class Run:
    """One run of pre-training: an engine, a cursor, and the folder that both are saved to."""

    def __init__(
        self,
        config: PretrainConfig,
        store: TokenStore,
        out: Path,
        engine: Engine,
        seed: int,
        on_metrics: OnMetrics,
        identity: str,
    ) -> None:
        self.config, self.store, self.out, self.engine, self.seed = config, store, out, engine, seed
        self.on_metrics, self.identity = on_metrics, identity
        self.cursor = Cursor()
        self.last: dict[str, float] = {}  # the newest value of each metric
        self.metrics_file = out / "metrics.jsonl"
        self.out.mkdir(parents=True, exist_ok=True)

    def loop(self) -> dict[str, float]:
        """Train until the configuration's end; give the last metrics."""
        self._resume()
        if self.cursor.done:
            return self._outcome()
        total = self._total_steps()
        self._began = time.monotonic() - self.cursor.seconds
        self._saved = time.monotonic()
        window = Window()
        with self._progress(total) as progress:
            while not self._finished(total):
                for rows in self._epoch():
                    window.add(train_step(self.engine, self.store, rows, self.config, self.seed), len(rows))
                    self.cursor.batch += 1
                    self.cursor.samples += len(rows)
                    self._advance(progress, window.note())
                    end = self._finished(total)
                    if self.engine.steps % self.config.log_every == 0 or end:
                        self._report(window.drain() | {"learning_rate": self.engine.learning_rate})
                    if self.engine.steps % self.config.validate_every == 0:
                        self._validate()
                        end = self._finished(total)
                    self._save_if_due()
                    if end:
                        break
                else:
                    self.cursor.epoch, self.cursor.batch = self.cursor.epoch + 1, 0
        if self.engine.steps % self.config.validate_every or not self.engine.steps:
            self._validate()
        self.cursor.done = True
        self._save()
        return self._outcome()

    def _outcome(self) -> dict[str, float]:
        return self.last | {"steps": float(self.engine.steps), "seconds": self.cursor.seconds}

    def _progress(self, total: int | None) -> Progress:
        """By the clock where it bounds the run, else by steps."""
        if self.config.max_seconds is not None:
            return Progress(
                "pretrain",
                round(self.config.max_seconds),
                unit="s",
                start=min(int(self.cursor.seconds), round(self.config.max_seconds)),
            )
        assert total is not None, "PretrainConfig bounds every run"
        return Progress("pretrain", total, unit="step", start=self.engine.steps)

    def _advance(self, progress: Progress, note: str) -> None:
        now = self.engine.steps if self.config.max_seconds is None else int(time.monotonic() - self._began)
        progress.update(min(now, progress.total) - progress.done, note=f"step {self.engine.steps}  {note}")

    def _epoch(self) -> Iterator[Int64[np.ndarray, " b"]]:
        return epoch_batches(
            self.store,
            "train",
            self.config.batch_size,
            self.seed,
            self.cursor.epoch,
            bucket=self.config.bucket,
            start=self.cursor.batch,
        )

    def _total_steps(self) -> int | None:
        """Optimiser steps that epochs and steps allow; None when only the clock bounds the run."""
        per_epoch = batches_per_epoch(self.store.split("train").size, self.config.batch_size)
        bounds = [self.config.steps] if self.config.steps is not None else []
        if self.config.epochs is not None:
            bounds.append(self.config.epochs * per_epoch)
        return min(bounds) if bounds else None

    def _finished(self, total: int | None) -> bool:
        self.cursor.seconds = time.monotonic() - self._began
        return (
            (total is not None and self.engine.steps >= total)
            or (self.config.max_seconds is not None and self.cursor.seconds >= self.config.max_seconds)
            or (self.config.patience is not None and self.cursor.stale >= self.config.patience)
        )

    def _validate(self) -> None:
        """Loss of the validation split (where there is one) under the weights that would be handed over."""
        rows = self.store.split("val")
        if not rows.size:
            return
        with swapped(self.engine):
            metrics = evaluate(
                self.engine.model, self.store, rows, law=self.config.law, piece_tokens=self.config.piece_tokens
            )
        loss = metrics["val/nll"]
        if self.cursor.best is None or loss < self.cursor.best:
            self.cursor.best, self.cursor.stale = loss, 0
        else:
            self.cursor.stale += 1
        self._report(metrics)

    def _report(self, metrics: dict[str, float]) -> None:
        metrics = metrics | {"epoch": float(self.cursor.epoch), "seconds": self.cursor.seconds}
        self.last |= metrics
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps({"step": self.engine.steps, **metrics}) + "\n")
        self.on_metrics(self.engine.steps, metrics)

    # ---- saving and resuming ---------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        late = time.monotonic() - self._saved >= self.config.checkpoint_seconds
        if late or self.engine.steps % self.config.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        self.cursor.metrics_bytes = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        save_snapshot(
            self.out / "snapshots",
            self.engine.steps,
            {
                "identity": self.identity,
                "engine": self.engine.state_dict(),
                "cursor": vars(self.cursor),
                "last": self.last,
            },
            keep=self.config.keep_checkpoints,
        )
        self._saved = time.monotonic()

    def _resume(self) -> None:
        found = load_snapshot(self.out / "snapshots")
        if found is None:
            self.metrics_file.unlink(missing_ok=True)
            return
        step, state = found
        if state["identity"] != self.identity:
            raise InputError(
                "this folder holds a run with another model, data set, seed or training configuration",
                source=self.out,
                remedy="choose another output folder, or delete this one to start afresh",
            )
        self.engine.load_state_dict(state["engine"])
        self.cursor, self.last = Cursor(**state["cursor"]), dict(state["last"])
        # Metrics written after the snapshot will be written again.
        if self.metrics_file.exists():
            with self.metrics_file.open("r+b") as stream:
                stream.truncate(self.cursor.metrics_bytes)
        if self.cursor.done:  # unless more was asked for since
            seconds = self.cursor.seconds
            self._began = time.monotonic() - seconds
            self.cursor.done = self._finished(self._total_steps())
            self.cursor.seconds = seconds
        if not self.cursor.done:
            print(f"pretrain: continuing at step {step}", file=sys.stderr)


def train_step(
    engine: Engine, store: TokenStore, rows: Int64[np.ndarray, " b"], config: PretrainConfig, seed: int
) -> dict[str, float]:
    """One optimiser step on `rows`; gives the batch's mean loss, in all and per factor, and the gradient's norm.

    The loss is the mean over the batch, however it is cut into pieces and shared among ranks.
    """
    # Dropout: the same whether or not the run was resumed, another on each rank.
    torch.manual_seed(_seed(seed, engine.steps, engine.rank))
    engine.model.train()
    sums = torch.zeros(len(FACTORS), dtype=torch.float64)
    for piece in pieces(store, rows[engine.rank :: engine.world_size], config.piece_tokens):
        with engine.autocast():
            scores = log_prob(engine.model, piece.to(_device(engine)), law=config.law)
        engine.backward(-scores.total.sum() / len(rows))
        sums += _sums(scores.factors())
    return _means(engine.sum_over_ranks(sums), len(rows), "train") | {"gradient_norm": engine.step()}


class Window:
    """Means of what happened since the last report."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._samples, self._began = 0, time.monotonic()

    def add(self, values: dict[str, float], samples: int) -> None:
        """Take note of one step on `samples` crystals."""
        self._values.append(values)
        self._samples += samples

    def note(self) -> str:
        """The newest loss, for the progress line."""
        return f"NLL {self._values[-1]['train/nll']:.2f}"

    def drain(self) -> dict[str, float]:
        """Mean of each metric over the steps since the last call, and samples per second."""
        means = {key: float(np.mean([value[key] for value in self._values])) for key in self._values[0]}
        means["samples_per_s"] = self._samples / max(time.monotonic() - self._began, 1e-9)
        self._restart()
        return means


def pieces(store: TokenStore, rows: Int64[np.ndarray, " b"], piece_tokens: int) -> Iterator[TokenBatch]:
    """The batch of `rows` in pieces of at most `piece_tokens` tokens each (one crystal at least), cut to length."""
    n_sites = np.asarray(store.column("n_sites")[rows])
    slots = int(n_sites.max(initial=0)) + 1
    size = max(1, piece_tokens // (TOKENS_PER_SITE * slots))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        longest = int(n_sites[first : first + size].max())
        yield TokenBatch.from_tokens(store.tokens(part, slots=longest + 1))


@torch.no_grad()
def evaluate(
    model: CrystalFormer,
    store: TokenStore,
    rows: Int64[np.ndarray, " n"],
    *,
    law: Law = "exact",
    piece_tokens: int = 16384,
    split: str = "val",
) -> dict[str, float]:
    """Mean negative log-likelihood of `rows` in nats per crystal, in all and per factor, without dropout."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(len(FACTORS), dtype=torch.float64)
    order = rows[np.argsort(store.column("n_sites")[rows], kind="stable")]
    for first in range(0, len(order), 1000):
        for piece in pieces(store, order[first : first + 1000], piece_tokens):
            sums += _sums(log_prob(model, piece.to(device), law=law).factors())
    model.train(was_training)
    return _means(sums, len(rows), split)


class swapped:
    """While it is open, the engine's model has the weights that would be handed over."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._own = {name: value.clone() for name, value in self._engine.model.state_dict().items()}
        self._engine.model.load_state_dict(self._engine.averaged_state())

    def __exit__(self, *error: object) -> None:
        self._engine.model.load_state_dict(self._own)


def _sums(factors: dict[str, Float[Tensor, " B"]]) -> Float[Tensor, " F"]:
    return torch.stack([factors[name].detach().double().sum() for name in FACTORS]).cpu()


def _means(sums: Float[Tensor, " F"], count: int, split: str) -> dict[str, float]:
    nll = dict(zip(FACTORS, (-sums / count).tolist(), strict=True))
    return {f"{split}/nll": float(sum(nll.values()))} | {f"{split}/nll_{name}": value for name, value in nll.items()}


def _device(engine: Engine) -> torch.device:
    return next(engine.model.parameters()).device


def _seed(seed: int, step: int, rank: int = 0) -> int:
    """An independent 63-bit seed for each (seed, step, rank); step -1 is the initialisation."""
    return int(np.random.SeedSequence((seed, step + 1, rank)).generate_state(1, np.uint64)[0] >> 1)


def _identity(model_config: ModelConfig, config: PretrainConfig, store: TokenStore, seed: int) -> str:
    """Hash of what must not change between two calls; how long to train, how often to save may."""
    free = {
        "epochs",
        "steps",
        "max_seconds",
        "patience",
        "log_every",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep_checkpoints",
    }
    return sha256_json(
        {
            "model": model_config.model_dump(mode="json"),
            "train": config.model_dump(mode="json", exclude=free),
            "data": store.manifest.get("data_hash"),
            "seed": seed,
        }
    )


def _check_data(store: TokenStore, model_config: ModelConfig, config: PretrainConfig) -> None:
    """The training split is not empty, and the law allows every crystal in it and in the validation split."""
    if not store.split("train").size:
        raise InputError(
            "the training split is empty",
            source=store.path,
            remedy="ingest more data or change the shares of the splits",
        )
    for split in ("train", "val"):
        rows = store.split(split)
        for first in range(0, rows.size, CHECK_ROWS):
            part = rows[first : first + CHECK_ROWS]
            reasons = impossible(store.tokens(part), max_sites=model_config.max_sites, law=config.law)
            bad = [(row, reason) for row, reason in zip(part, reasons, strict=True) if reason is not None]
            if bad:
                row, reason = bad[0]
                raise InputError(
                    f"{reason} ({len(bad)} such crystals among the first {first + part.size} of split {split!r})",
                    source=store.path,
                    record=f"{int(row)} ({store.ids(int(row))[0]})",
                    remedy="remove these crystals from the data, or raise model.max_sites for longer ones",
                )
