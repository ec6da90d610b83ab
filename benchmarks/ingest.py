"""Ingestion against size: rate, memory, size of the store, how soon training begins on it, how fast it is read.

    python benchmarks/ingest.py [--rows 10000 100000 1300000] [--tokenized 10000] [--parquet FILE] [--processes 2]

Prints one JSON object. Up to `--tokenized` rows every step is done: parquet -> tokens -> store. Beyond it the shards of
those rows are repeated under other names and fingerprints (so that nothing counts as a duplicate) and what is measured
is the second step, shards -> store; tokenising is the same work for every row and is measured once. What grows with
duplicates, the comparison of crystals of equal fingerprint, is in the first figure alone.

Without --parquet the rows are the embedded data set's, again and again, each time with another volume; a file needs the
columns lattice, atomic_numbers and frac_coords.

Every size has a process of its own. `peak_anonymous_mb` is the memory that the kernel cannot take back, over the main
process and its workers, sampled 20 times a second; `peak_resident_mb` adds pages of mapped files, which are the page
cache's. `training`: imports, then from the call of `pretrain` on the store (which checks every crystal) to the end of
its first step of 100 crystals; of a small model: what is seen is the store's part. `loader_rows_per_s`: shuffled
batches of 100 as padded tensors, of a store that lies in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import finish

from crystalforge.model.config import ModelConfig

BATCH, LOADED = 100, 500  # crystals of a batch; batches that the loader is timed on
SMALL = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8)
SAMPLED_S = 0.05
SCALES = 1e-3  # relative change of the cell's edges from one repetition of a row to the next


def write_source(file: Path, rows: int, parquet: Path | None) -> None:
    """`rows` crystals as one parquet file: those of `parquet` or of the package, repeated with other volumes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crystalforge.data.sources.tables import embedded

    columns = ["lattice", "atomic_numbers", "frac_coords"]
    given = pq.read_table(parquet or embedded().file, columns=columns).slice(0, rows)
    parts = []
    for repeat in range(-(-rows // len(given))):
        part = given.slice(0, min(len(given), rows - repeat * len(given)))
        lattice = [[value * (1 + repeat * SCALES) for value in row] for row in part["lattice"].to_pylist()]
        parts.append(part.set_column(0, "lattice", pa.array(lattice)).cast(part.schema))
    pq.write_table(pa.concat_tables(parts), file)


class Memory:
    """Peak memory of this process and its children while the block runs, in MiB; see the module's text."""

    def __enter__(self) -> Memory:
        self.anonymous = self.resident = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLED_S):
            sums = np.zeros(2)
            for process in (os.getpid(), *_children(os.getpid())):
                sums += _memory(process)
            self.anonymous, self.resident = max(self.anonymous, sums[0]), max(self.resident, sums[1])

    def figures(self) -> dict[str, float]:
        return {"peak_anonymous_mb": round(self.anonymous), "peak_resident_mb": round(self.resident)}


def _children(process: int) -> Iterator[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it ended in between
        return
    for child in children:
        yield child
        yield from _children(child)


def _memory(process: int) -> np.ndarray:
    """Anonymous and resident memory in MiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return np.zeros(2)
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return np.array([float(found.get(name, 0)) / 1024 for name in ("RssAnon", "VmRSS")])


def tokenized(rows: int, parquet: Path | None, out: Path, processes: int) -> dict[str, Any]:
    """All of ingestion for `rows` rows."""
    from crystalforge.data.config import DataConfig
    from crystalforge.data.ingest import ingest, tokenize_shards

    out.mkdir(parents=True)
    source = out / "source.parquet"
    write_source(source, rows, parquet)
    # Shards of a size that every process gets several of.
    config = DataConfig.model_validate({"source": {"kind": "parquet", "path": str(source)}, "shard_size": 1024})
    tokenize_shards(config.model_copy(update={"limit": 8}), out / "warm", processes=1, progress=False)
    with Memory() as memory:
        began, began_cpu = time.perf_counter(), cpu_seconds()
        tokenize_shards(config, out, processes=processes)
        middle, middle_cpu = time.perf_counter(), cpu_seconds()
        manifest = ingest(config, out, processes=processes, progress=False)
        end = time.perf_counter()
    return {
        "rows": rows,
        "kept": manifest["rows"],
        "rejects": sum(manifest["rejects"].values()),
        "duplicates": manifest["duplicates"],
        "tokenize_rows_per_s": round(rows / (middle - began), 1),
        "tokenize_rows_per_cpu_s": round(rows / (middle_cpu - began_cpu), 1),
        "store_rows_per_s": round(rows / (end - middle), 1),
        "whole_rows_per_s": round(rows / (end - began), 1),
        **memory.figures(),
    }


def repeated(rows: int, shards: Path, out: Path, processes: int) -> dict[str, Any]:
    """Step 2 alone, on copies of the shards in `shards` that make `rows` rows."""
    from crystalforge.data.config import DataConfig
    from crystalforge.data.ingest import assemble
    from crystalforge.data.shards import read_shard, write_shard
    from crystalforge.data.workers import Pool

    originals = sorted(shards.glob("*.npz"))
    files, have = [], 0
    while have < rows:
        number = len(files)
        content, _ = read_shard(originals[number % len(originals)])
        content = content.take(np.arange(len(content)) < rows - have)
        mark = np.frombuffer((number + 1).to_bytes(16, "big"), np.uint8)
        # Formula and structure of a copy count as its own; the mark is spread over both halves.
        content = replace(
            content,
            ids=[f"{number}-{name}" for name in content.ids],
            fingerprint=content.fingerprint ^ mark ^ np.roll(mark, 8),
        )
        files.append(out / "shards" / f"{number:06d}.npz")
        write_shard(files[-1], content, [])
        have += len(content)
    with Memory() as memory, Pool(processes) as pool:
        began, began_cpu = time.perf_counter(), cpu_seconds()
        manifest = assemble(DataConfig(), out, files, pool)
        seconds, seconds_cpu = time.perf_counter() - began, cpu_seconds() - began_cpu
    return {
        "rows": rows,
        "kept": manifest["rows"],
        "duplicates": manifest["duplicates"],
        "store_rows_per_s": round(rows / seconds, 1),
        "store_rows_per_cpu_s": round(rows / seconds_cpu, 1),
        **memory.figures(),
    }


def used(out: Path) -> dict[str, Any]:
    """Size of the store in `out`, time until training on it has begun, rate of its batches."""
    began = time.perf_counter()
    import torch

    from crystalforge.data.batches import epoch_batches
    from crystalforge.data.store import TokenStore
    from crystalforge.model.batch import TokenBatch
    from crystalforge.training.config import PretrainConfig
    from crystalforge.training.pretrain import pretrain

    torch.set_num_threads(1)
    imported = time.perf_counter()
    store = TokenStore.open(out / "store")
    opened = time.perf_counter()
    first = float("nan")

    def stop(step: int, metrics: dict[str, float]) -> None:
        nonlocal first
        first = time.perf_counter()
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder, Memory() as memory:
        config = PretrainConfig(batch_size=BATCH, log_every=1, epochs=1)
        with contextlib.suppress(KeyboardInterrupt):
            pretrain(SMALL, config, store, Path(folder), seed=0, on_metrics=stop)
        training = memory.figures()
    batches = epoch_batches(store, "train", BATCH, seed=0, epoch=0)
    read, start = 0, time.perf_counter()
    for _, rows in zip(range(LOADED), batches, strict=False):
        read += len(TokenBatch.from_tokens(store.tokens(rows)).truncated())
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in (out / "store").iterdir())
    return {
        "store_mb": round(size / 2**20, 1),
        "bytes_per_row": round(size / len(store)),
        "training": {
            "imports_s": round(imported - began, 2),
            "open_store_s": round(opened - imported, 4),
            "to_first_step_s": round(first - opened, 2),
            **training,
        },
        "loader_rows_per_s": round(read / seconds),
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its workers that have ended: other work on the machine does not slow it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_300_000])
    parser.add_argument("--tokenized", type=int, default=10_000, help="rows up to which all steps are done")
    parser.add_argument("--parquet", type=Path, help="crystals to take; default: those of the package")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--directory", type=Path, help="where the stores are written; default: a temporary folder")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")

    def alone(function: Any, *arguments: Any) -> dict[str, Any]:
        """In a process of its own, so that one size's memory is not another's."""
        # Not a pool's worker: those may have no children.
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            return executor.submit(function, *arguments).result()

    sizes = []
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        root = Path(folder)
        shards = root / "shards"
        for rows in sorted({min(options.tokenized, min(options.rows)), *options.rows}):
            out = root / str(rows)
            if rows <= options.tokenized:
                found = alone(tokenized, rows, options.parquet, out, options.processes)
                shards = out / "shards"
            else:
                found = alone(repeated, rows, shards, out, options.processes)
            sizes.append(found | alone(used, out))
            if out / "shards" != shards:
                shutil.rmtree(out)
    finish(
        {
            "benchmark": "ingest",
            "input": "embedded" if options.parquet is None else options.parquet.name,
            "processes": options.processes,
            "sizes": sizes,
        },
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
