"""The evaluation proper: samples in, one parquet row per sample out.

The table is the single source of every figure, plot and list that the project shows. Samples are drawn, scored and
written a chunk at a time; what an interrupted evaluation has written is used by the next one with the same inputs.
Every sample counts in every denominator, also those from which no crystal could be built.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.common.progress import Progress
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.judging import judge
from crystalforge.evaluation.protocols import PROTOCOLS
from crystalforge.evaluation.reference import Reference
from crystalforge.evaluation.relaxing import Relaxer
from crystalforge.evaluation.samples import Source
from crystalforge.evaluation.scoring import score
from crystalforge.rewards.protocol import Reward

TABLE = "crystals.parquet"
CHUNKS = "chunks"
FORMAT = 1  # of the chunks; raised when their columns change, so that older ones are scored again


def evaluate_samples(
    sources: Sequence[Source],
    reward: Reward,
    reference: Reference,
    config: EvaluateConfig,
    *,
    out: Path,
    held_out: Reward | None = None,
    relaxer: Relaxer | None = None,
    lineage: Mapping[str, Mapping[str, str]] | None = None,
    quiet: bool = False,
) -> pa.Table:
    """Evaluate samples of one or more models; write `out/crystals.parquet` and return the table.

    sources: one per (label, seed). lineage: for each label, values of run_id, model_hash and data_hash. held_out: a
    second opinion; relaxer: for protocols that judge relaxed crystals; see `scoring.score` for both. Columns are
    described in `scoring` and `judging.judge`. Raises RewardUnavailable when the service stops answering; chunks
    scored before stay and are not scored again.
    """
    names = [(source.label, source.seed) for source in sources]
    assert len(set(names)) == len(names), "two sources have the same label and seed"
    parts: list[pa.Table] = []
    total = sum(len(source) for source in sources)
    with Progress("score", total, unit="crystals", stream=io.StringIO() if quiet else None) as progress:
        for source in sources:
            origin = dict((lineage or {}).get(source.label, {}))
            folder = out / CHUNKS / _folder(source, reward, held_out, relaxer, origin, config.chunk)
            for first in range(0, len(source), config.chunk):
                count = min(config.chunk, len(source) - first)
                file = folder / f"{first:08d}.parquet"
                part = _read_chunk(file, count)
                if part is None:
                    samples = source.draw(first, count)
                    part = score(samples, reward, held_out=held_out, relaxer=relaxer, lineage=origin)
                    assert len(part) == count, "a source must give as many samples as asked for"
                    with atomic_file(file) as temporary:
                        pq.write_table(part, temporary)
                    part = pq.read_table(file)  # so that a resumed evaluation has the very same columns
                parts.append(part)
                progress.update(count, note=f"{source.label}, seed {source.seed}")
    table = pa.concat_tables(parts, promote_options="default")
    protocols = [PROTOCOLS[name] for name in config.protocols]
    table = judge(table, reference, protocols, processes=config.processes, nearest=config.nearest, quiet=quiet)
    table = table.replace_schema_metadata(
        {
            "protocols": json.dumps({p.name: p.model_dump(mode="json") for p in protocols}),
            "headline": protocols[0].name,
            "reference": reference.digest,
            "held_out_version": str(held_out.version) if held_out is not None else "",
        }
    )
    with atomic_file(out / TABLE) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table


def read_table(path: Path) -> pa.Table:
    """A table that `evaluate_samples` wrote; raises InputError naming the file when it is not one."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"this is not a readable table of crystals ({error})",
            source=path,
            remedy="run `crystalforge evaluate` again",
        ) from error
    if "label" not in table.column_names or b"headline" not in (table.schema.metadata or {}):
        raise InputError(
            "this parquet file was not written by an evaluation",
            source=path,
            remedy=f"give the {TABLE} of an evaluation",
        )
    return table


def _folder(
    source: Source,
    reward: Reward,
    held_out: Reward | None,
    relaxer: Relaxer | None,
    lineage: Mapping[str, str],
    chunk: int,
) -> str:
    """Name of the folder of a source's chunks: different inputs never share one."""
    key = sha256_json(
        {
            "format": FORMAT,
            "source": source.identity(),
            "label": source.label,
            "seed": source.seed,
            "reward": reward.version.digest,
            "held_out": held_out.version.digest if held_out is not None else None,
            "relaxer": relaxer.identity() if relaxer is not None else None,
            # not the run: a resumed evaluation may have a new one, and rows keep the run that scored them
            "lineage": {name: value for name, value in lineage.items() if name != "run_id"},
            "chunk": chunk,
        }
    )
    return f"{source.label}-{source.seed}-{key[:16]}"


def _read_chunk(file: Path, count: int) -> pa.Table | None:
    """An earlier run's chunk; None when absent. A damaged or short one is scored again, and it is said so."""
    if not file.exists():
        return None
    try:
        part = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        print(f"{file} is damaged ({error}); its samples are scored again", file=sys.stderr)
        return None
    return part if len(part) == count else None
