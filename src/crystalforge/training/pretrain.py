"""Maximum likelihood on a token store: the loop, its end, its metrics and its snapshots.

The order of the data is a function of (seed, epoch), dropout a function of (seed, step, rank), and a snapshot holds
all else: a run killed at any instant and called again ends with the same weights, bit for bit. Taken up by another
number of processes, or by another engine, it goes on from the same state; sums are then rounded in another order, and
dropout (where there is any) is another draw.

Under several ranks all of them run this loop. What the clock decides, the first rank's clock decides; it alone reads
snapshots, writes files and reports.

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
from jaxtyping import Int64

from crystalforge.common import termination
from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_json
from crystalforge.common.progress import Progress
from crystalforge.data.batches import batches_per_epoch, epoch_batches
from crystalforge.data.store import TokenStore
from crystalforge.model.build import build_model
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.likelihood import impossible
from crystalforge.training.config import PretrainConfig
from crystalforge.training.engine import Engine, MakeEngine, TorchEngine
from crystalforge.training.ranks import ALONE, Ranks
from crystalforge.training.snapshots import load_snapshot, save_snapshot
from crystalforge.training.steps import Window, derived_seed, evaluate, swapped, train_step

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
    ranks: Ranks = ALONE,
    make_engine: MakeEngine = TorchEngine,
    start: Path | None = None,
) -> PretrainResult:
    """Train a model on the store's training split; leaves `out/model`, `out/metrics.jsonl`, `out/snapshots`.

    `start`: directory of weights to begin with, those that `config.start` names; none: fresh ones.
    Called again with the same `out` it continues where it stopped; with more epochs or steps it goes on from there.
    `on_metrics(step, metrics)` sees what goes to metrics.jsonl. Every one of `ranks` must call; each gets the result,
    the first one writes it.

    Raises InputError when the split is empty, holds crystals that the law forbids, or `out` belongs to another run.
    """
    _check_data(store, model_config, config)
    torch.manual_seed(derived_seed(seed, -1))
    model = build_model(model_config)
    if start is not None:
        free = {name: load_model(start).model.config.model_dump()[name] for name in ("dropout", "attention_dropout")}
        expected = model_config.model_copy(update=free)  # how much is dropped is training's business
        model.load_state_dict(load_model(start, expected=expected).model.state_dict())
    engine = make_engine(model.to(ranks.device), config.optimizer, ranks)
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
    model_dir = out / "model"
    if ranks.leads:
        model = build_model(model_config)
        model.load_state_dict(engine.averaged_state())
        info = {
            "stage": "pretrain",
            "seed": seed,
            "steps": engine.steps,
            "config": config.model_dump(mode="json"),
            "data_hash": store.manifest.get("data_hash"),
            "spacegroup_weights": store.spacegroup_weights("train").tolist(),
            "metrics": metrics,
        }
        save_model(model_dir, model, info=info)
    ranks.first(0.0)  # nobody returns before the model is there
    return PretrainResult(model_dir, metrics)


def training_rows(store: TokenStore, config: PretrainConfig) -> Int64[np.ndarray, " n"]:
    """The rows of the training split that the configuration wants."""
    rows = store.split("train")
    if config.max_e_above_hull is None:
        return rows
    return rows[~(np.asarray(store.column("e_above_hull")[rows]) > config.max_e_above_hull)]  # unknown ones are NaN


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
        self.rows = training_rows(store, config)
        self.ranks = engine.ranks
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
        self._saved = self.cursor.seconds
        window = Window()
        with self._progress(total) as progress, termination.whole_steps():
            while not self._finished(total):
                for rows in self._epoch():
                    self._cool()
                    window.add(train_step(self.engine, self.store, rows, self.config, self.seed), len(rows))
                    self.cursor.batch += 1
                    self.cursor.samples += len(rows)
                    self._look_at_clock()
                    self._advance(progress, window.note())
                    end = self._finished(total)
                    if self.engine.steps % self.config.log_every == 0 or end:
                        self._report(window.drain() | {"learning_rate": self.engine.learning_rate})
                    if self.engine.steps % self.config.validate_every == 0:
                        self._validate()
                        end = self._finished(total)
                    self._save_if_due()
                    if self.ranks.any(termination.asked()):
                        self._save()
                        raise termination.Terminated
                    if end:
                        break
                else:
                    self.cursor.epoch, self.cursor.batch = self.cursor.epoch + 1, 0
        if self.engine.steps % self.config.validate_every or not self.engine.steps:
            self._validate()
        self._look_at_clock()
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
                quiet=not self.ranks.leads,
            )
        assert total is not None, "PretrainConfig bounds every run"
        return Progress("pretrain", total, unit="step", start=self.engine.steps, quiet=not self.ranks.leads)

    def _advance(self, progress: Progress, note: str) -> None:
        now = self.engine.steps if self.config.max_seconds is None else int(self.cursor.seconds)
        assert progress.total is not None
        progress.update(min(now, progress.total) - progress.done, note=f"step {self.engine.steps}  {note}")

    def _epoch(self) -> Iterator[Int64[np.ndarray, " b"]]:
        return epoch_batches(
            self.store,
            "train",
            self.config.batch_size,
            self.seed,
            self.cursor.epoch,
            bucket=self.config.bucket,
            groups=self.config.bucket_groups,
            start=self.cursor.batch,
            chosen=self.rows,
        )

    def _total_steps(self) -> int | None:
        """Optimiser steps that epochs and steps allow; None when only the clock bounds the run."""
        per_epoch = batches_per_epoch(self.rows.size, self.config.batch_size)
        bounds = [self.config.steps] if self.config.steps is not None else []
        if self.config.epochs is not None:
            bounds.append(self.config.epochs * per_epoch)
        return min(bounds) if bounds else None

    def _look_at_clock(self) -> None:
        self.cursor.seconds = self.ranks.first(time.monotonic() - self._began)

    def _cool(self) -> None:
        """The rate of the next step, where the clock has a say in it."""
        if self.config.cooldown is None or self.config.max_seconds is None:
            return
        left = max(0.0, 1.0 - self.cursor.seconds / self.config.max_seconds)
        rate = self.config.optimizer.rate(self.engine.steps)
        self.engine.learning_rate = rate * min(1.0, left / self.config.cooldown)

    def _finished(self, total: int | None) -> bool:
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
                self.engine.model,
                self.store,
                rows,
                law=self.config.law,
                piece_tokens=self.config.piece_tokens,
                ranks=self.ranks,
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
        if not self.ranks.leads:
            return
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps({"step": self.engine.steps, **metrics}) + "\n")
        self.on_metrics(self.engine.steps, metrics)

    # ---- saving and resuming ---------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        late = self.cursor.seconds - self._saved >= self.config.checkpoint_seconds
        if late or self.engine.steps % self.config.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        engine = self.engine.state_dict()  # parts of it may lie with other ranks
        self._saved = self.cursor.seconds
        if not self.ranks.leads:
            return
        self.cursor.metrics_bytes = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        save_snapshot(
            self.out / "snapshots",
            self.engine.steps,
            {"identity": self.identity, "engine": engine, "cursor": vars(self.cursor), "last": self.last},
            keep=self.config.keep_checkpoints,
        )

    def _resume(self) -> None:
        found = self.ranks.share(load_snapshot(self.out / "snapshots") if self.ranks.leads else None)
        if found is None:
            if self.ranks.leads:
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
        if self.ranks.leads and self.metrics_file.exists():
            with self.metrics_file.open("r+b") as stream:
                stream.truncate(self.cursor.metrics_bytes)
        if self.cursor.done:  # unless more was asked for since
            self.cursor.done = self._finished(self._total_steps())
        if self.ranks.leads and not self.cursor.done:
            print(f"pretrain: continuing at step {step}", file=sys.stderr)


def _identity(model_config: ModelConfig, config: PretrainConfig, store: TokenStore, seed: int) -> str:
    """Hash of what must not change between two calls; how long to train, how often to save, by which means, may."""
    free = {
        "epochs",
        "steps",
        "max_seconds",
        "patience",
        "log_every",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep_checkpoints",
        "engine",
        "accumulation",
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
    if not training_rows(store, config).size:
        raise InputError(
            "the training split is empty, or none of it is below pretrain.max_e_above_hull",
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
