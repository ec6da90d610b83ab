"""Any source -> one token store.

1. Records are read in order and cut into shards; each becomes tokens and rejects in a worker process and is kept
   under `out/shards/` by its content (`shards.py`). An interrupted ingestion continues where it was.
2. The shards are laid end to end; splits are assigned, duplicates found (`fingerprint.py`), the store is written.

Memory holds a few shards, and about 60 bytes per row of step 2: 0.1 GB for 1.3 million.

Several machines can share step 1 (`tokenize_shards(..., part=i, parts=n)` on a common directory); `ingest` then
finds all shards done. With CRYSTALFORGE_SHARDS in the environment all ingestions keep their shards in that one
directory, and none does again what another has done.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_json, write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal.reading.reasons import REMEDIES
from crystalforge.data.config import SPLITS, DataConfig
from crystalforge.data.fingerprint import across_splits, assign_splits, select
from crystalforge.data.shards import NO_SPLIT, Limits, Reject, chunks, is_whole, make_shard, read_shard, shard_key
from crystalforge.data.sources import Record, Source, open_source
from crystalforge.data.store import Rows, TokenStore
from crystalforge.data.workers import Pool, available_processes

Manifest = dict[str, Any]
CHUNK = 8192  # rows in memory while the store is written
SHARDS_VARIABLE = "CRYSTALFORGE_SHARDS"
LISTED_DUPLICATES = 10_000  # duplicates are not errors: this many are listed, all are counted


def ingest(config: DataConfig, out: Path, *, processes: int | None = None, progress: bool = True) -> Manifest:
    """Read, tokenise, split and store; writes `out/store`, `out/rejects.jsonl`, `out/manifest.json`.

    Returns the manifest: data_hash, rows, counts by split, rejects by reason, source and configuration. The result
    does not depend on `processes` (default: the available cores). Raises InputError when the source cannot be read
    or nothing in it can be used; the rejects file is written all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    with Pool(processes or available_processes()) as pool:
        files = _tokenize(config, out, pool, progress=progress)
        return assemble(config, out, files, pool)


def tokenize_shards(
    config: DataConfig, out: Path, *, part: int = 0, parts: int = 1, processes: int | None = None, progress: bool = True
) -> int:
    """Step 1 for every `parts`-th shard, beginning with number `part`; returns how many those are."""
    if not 0 <= part < parts:
        raise InputError(f"part {part} of {parts}", remedy="parts are numbered from 0")
    with Pool(processes or available_processes()) as pool:
        return len(_tokenize(config, out, pool, part=part, parts=parts, progress=progress))


def count_shards(config: DataConfig, out: Path) -> int:
    """How many shards the source makes; what is to be downloaded lies in `out/downloads` afterwards."""
    _, count = _open(config, out)
    return -(-count // config.shard_size)


def _open(config: DataConfig, out: Path) -> tuple[Source, int]:
    """The source and how many of its records are read; InputError when there are none."""
    source = open_source(config, out / "downloads")
    count = source.count() if config.limit is None else min(source.count(), config.limit)
    if not count:
        raise InputError("the source has no records", source=_place(config), remedy="correct data.source")
    return source, count


def _tokenize(
    config: DataConfig, out: Path, pool: Pool, *, part: int = 0, parts: int = 1, progress: bool = True
) -> list[Path]:
    """The shard files of this part, in order, made where they were not there."""
    cache = Path(os.environ.get(SHARDS_VARIABLE) or out / "shards")
    cache.mkdir(parents=True, exist_ok=True)
    source, count = _open(config, out)
    limits = Limits.of(config)
    files: list[Path] = []
    label = "tokenise" if parts == 1 else f"tokenise {part + 1}/{parts}"
    starts = range(part * config.shard_size, count, parts * config.shard_size)
    mine = sum(min(config.shard_size, count - start) for start in starts)
    with Progress(label, total=mine, unit="crystal", quiet=not progress) as meter:

        def tasks() -> Iterator[tuple[list[Record], Limits, Path]]:
            seen: set[Path] = set()
            records = islice(source.records(), config.limit)
            for number, shard in enumerate(chunks(records, config.shard_size)):
                if number % parts != part:
                    continue
                file = cache / f"{shard_key(shard, limits)}.npz"
                files.append(file)
                if file in seen or is_whole(file):
                    meter.update(len(shard), note="found shards that were done before")
                else:
                    yield shard, limits, file
                seen.add(file)

        for size in pool.run(_make, tasks(), after_crash=_make_isolated):
            meter.update(size)
    return files


def assemble(config: DataConfig, out: Path, files: list[Path], pool: Pool) -> Manifest:
    """Step 2: shards, in order -> rejects file, store, manifest; returns the manifest, as `ingest` does."""
    rejects, (rows, sites, id_bytes) = _survey(files, out / "rejects.jsonl")
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.most_common(5))
        raise InputError(
            f"all {sum(rejects.values())} records are rejected ({reasons})",
            source=_place(config),
            remedy=f"see {out / 'rejects.jsonl'}",
        )
    staged = out / ".staged"
    for left in (*out.glob(".store.*.tmp"), *out.glob("..staged.*.tmp")):  # of a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    try:
        # Staged first with everything in it: its memory maps then give any row at random, whatever the size.
        TokenStore.write(staged, (read_shard(file)[0] for file in files), rows=rows, sites=sites, id_bytes=id_bytes)
        everything = TokenStore.open(staged)
        fingerprint = np.asarray(everything.column("fingerprint"))
        split = _splits(config, np.array(everything.column("split")), fingerprint)
        wanted = split != NO_SPLIT
        unique = select(everything.tokens, fingerprint, split, deduplicate=config.deduplicate, run=pool.run)
        keep = unique & wanted
        _list_duplicates(out / "rejects.jsonl", everything, ~unique & wanted, config)
        leaks = _leaks(out / "leaks.jsonl", everything, fingerprint, np.where(keep, split, -1).astype(np.int8), pool)
        info = {
            "source": config.source.model_dump(mode="json"),
            "config": config.model_dump(mode="json"),
            "config_hash": sha256_json(config.model_dump(mode="json")),
            "records": rows + sum(rejects.values()),
            "rejects": dict(sorted(rejects.items())),
            "duplicates": int((~unique & wanted).sum()),
            "leaks": leaks,
            "without_split": int((~wanted).sum()),
            "spacegroups": int(np.unique(np.asarray(everything.column("spacegroup"))[keep]).size),
            "versions": {name: version(name) for name in ("spglib", "pymatgen")},
        }
        lengths = np.diff(np.asarray(everything.column("id_offsets")))
        manifest = TokenStore.write(
            out / "store",
            _kept_parts(everything, keep, split),
            rows=int(keep.sum()),
            sites=int(np.asarray(everything.column("n_sites"))[keep].sum(dtype=np.int64)),
            id_bytes=int(lengths[keep].sum()),
            info=info,
        )
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    write_json(out / "manifest.json", manifest)
    return manifest


def _survey(files: list[Path], rejects_file: Path) -> tuple[Counter[str], tuple[int, int, int]]:
    """Write the rejects of all shards to one file; count them, and the rows, sites and bytes of names."""
    rejects: Counter[str] = Counter()
    total = np.zeros(3, np.int64)
    with atomic_file(rejects_file) as temporary, temporary.open("w") as stream:
        for file in files:
            rows, bad = read_shard(file)
            total += (len(rows), rows.wyckoff.size, sum(len(name.encode()) for name in rows.ids))
            rejects.update(reject.reason for reject in bad)
            stream.writelines(json.dumps(asdict(reject)) + "\n" for reject in bad)
    return rejects, (int(total[0]), int(total[1]), int(total[2]))


def _splits(config: DataConfig, given: Int8[np.ndarray, " B"], fingerprint: np.ndarray) -> Int8[np.ndarray, " B"]:
    """The split of every row; rows of no split (reference) keep -1, rows left out have NO_SPLIT."""
    stated = given >= 0
    mode = config.split.mode
    if mode == "auto":
        mode = "given" if stated.any() else "formula"
    if mode == "given":
        if not stated.any():
            raise InputError(
                "the source gives no splits",
                source=_place(config),
                remedy=f"use {', '.join(SPLITS)}, or split.mode=formula",
            )
        return given
    return np.where(given == -1, given, assign_splits(fingerprint, config.split)).astype(np.int8)


def _kept_parts(store: TokenStore, keep: Bool[np.ndarray, " B"], split: Int8[np.ndarray, " B"]) -> Iterator[Rows]:
    """The kept rows of a staged store with their final split, a chunk at a time."""
    for first in range(0, len(store), CHUNK):
        rows = store.rows(slice(first, first + CHUNK), split=split[first : first + CHUNK])
        yield rows.take(keep[first : first + CHUNK])


def _leaks(
    file: Path, store: TokenStore, fingerprint: np.ndarray, split: Int8[np.ndarray, " B"], pool: Pool
) -> dict[str, int]:
    """Count, list and tell of crystals that match one of another split although their symmetry differs."""
    pairs = across_splits(store.tokens, fingerprint, split, run=pool.run)
    counts = Counter(f"{SPLITS[split[row]]} in {SPLITS[split[other]]}" for row, other in pairs.tolist())
    if not len(pairs):
        file.unlink(missing_ok=True)
        return {}
    names = [store.ids(np.ascontiguousarray(column)) for column in pairs.T]
    with atomic_file(file) as temporary:
        lines = (
            json.dumps({"id": one, "split": SPLITS[split[row]], "matches": two, "in": SPLITS[split[other]]}) + "\n"
            for one, two, (row, other) in zip(*names, pairs.tolist(), strict=True)
        )
        temporary.write_text("".join(lines))
    shown = ", ".join(f"{count} of {name.replace(' in ', ' match one of ')}" for name, count in sorted(counts.items()))
    print(
        f"given splits: {shown}, with another symmetry (mirror twins, distorted copies); kept, and listed in {file}. "
        "data.split.mode=formula keeps every formula on one side.",
        file=sys.stderr,
    )
    return dict(sorted(counts.items()))


def _list_duplicates(file: Path, store: TokenStore, dropped: Bool[np.ndarray, " B"], config: DataConfig) -> None:
    """Add the crystals that match another one to the rejects file."""
    rows = np.flatnonzero(dropped)[:LISTED_DUPLICATES].astype(np.int64)
    message, remedy = "it matches another crystal, which is kept", REMEDIES["duplicate"]
    rejects = [Reject(_place(config), None, name, "duplicate", "", message, remedy) for name in store.ids(rows)]
    text = file.read_text()
    with atomic_file(file) as temporary:
        temporary.write_text(text + "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects))


def _make(records: list[Record], limits: Limits, file: Path) -> int:
    make_shard(records, limits, file)
    return len(records)


def _make_isolated(records: list[Record], limits: Limits, file: Path) -> int:
    make_shard(records, limits, file, isolated=True)
    return len(records)


def _place(config: DataConfig) -> str:
    return getattr(config.source, "path", config.source.kind)
