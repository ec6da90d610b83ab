"""The evaluation proper: samples in, one parquet row per sample out.

The table is the single source of every figure, plot and list that the project shows. Samples are drawn, scored and
written a piece at a time (see `parts`); what an interrupted evaluation has written is used by the next one with the
same inputs. Every sample counts in every denominator, also those from which no crystal could be built.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file
from crystalforge.common.progress import Progress
from crystalforge.evaluation.config import EvaluateConfig, RelaxSettings
from crystalforge.evaluation.drawing.samples import Source
from crystalforge.evaluation.judging.judge import judge
from crystalforge.evaluation.judging.parts import Parts, append, held_out_prefix, scattered, versions
from crystalforge.evaluation.judging.relaxing import Relaxer, chosen_rows
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.objective import TAU
from crystalforge.evaluation.protocols import PROTOCOLS
from crystalforge.rewards.protocol import Reward

TABLE = "crystals.parquet"
CHUNKS = "chunks"

Lineage = Mapping[str, Mapping[str, str]] | Mapping[tuple[str, int], Mapping[str, str]]


def evaluate_samples(
    sources: Sequence[Source],
    reward: Reward,
    reference: Reference,
    config: EvaluateConfig,
    *,
    out: Path,
    held_out: Sequence[Reward] = (),
    relaxer: Relaxer | None = None,
    lineage: Lineage | None = None,
    tau: float | None = None,
    quiet: bool = False,
) -> pa.Table:
    """Evaluate samples of one or more models; write `out/crystals.parquet` and return the table.

    sources: one per (label, seed). held_out: second opinions; their answers get the prefixes `held_out_`,
    `held_out_2_`, ... relaxer: moves the crystals that `config.relax` chooses; adds the column relaxed_asked, those of
    `relaxing.relaxed_table`, and all judges' answers for the relaxed crystals with the prefix `relaxed_` before their
    own. lineage: for each label, or each label and seed, values of run_id, model_hash and data_hash. The other columns
    are described in `scoring` and `judging.judge`. tau: price of a nat in the objective of the tuned models, for the
    metadata (`metrics.objective`). Raises RewardUnavailable when the service stops answering; what was
    computed before stays and is not computed again.
    """
    names = [(source.label, source.seed) for source in sources]
    assert len(set(names)) == len(names), "two sources have the same label and seed"
    known: dict[str | tuple[str, int], Mapping[str, str]] = dict(lineage or {})  # type: ignore[arg-type]
    settings = config.relax or RelaxSettings()
    judges = {"": reward, **{held_out_prefix(k): judge for k, judge in enumerate(held_out)}}
    chosen = {
        name: chosen_rows(len(source), settings.crystals, source.seed)
        for name, source in zip(names, sources, strict=True)
        if relaxer is not None
    }
    tables: list[pa.Table] = []
    total = sum(len(source) * (1 + len(held_out)) for source in sources) + sum(map(len, chosen.values()))
    with Progress("judge", total, unit="crystals", stream=io.StringIO() if quiet else None) as progress:
        for name, source in zip(names, sources, strict=True):
            label, seed = name

            def tick(count: int, what: str, label: str = label, seed: int = seed) -> None:
                progress.update(count, note=f"{what}: {label}, seed {seed}")

            parts = Parts(out / CHUNKS, source, known.get(name) or known.get(label) or {}, config.chunk)
            scored = table = parts.scored(reward, tick)
            for number, other in enumerate(held_out):
                table = append(table, parts.opinion(other, scored, tick), held_out_prefix(number))
            if relaxer is not None:
                rows = chosen[name]
                found = parts.relaxed(relaxer, judges, scored, rows, settings.piece, tick)
                asked = np.zeros(len(table), dtype=bool)
                asked[rows] = True
                table = append(table.append_column("relaxed_asked", [asked]), scattered(found, rows, len(table)))
            tables.append(table)
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    protocols = [PROTOCOLS[name] for name in config.protocols]
    table = judge(table, reference, protocols, processes=config.processes, nearest=config.nearest, quiet=quiet)
    table = table.replace_schema_metadata(
        {
            "protocols": json.dumps({p.name: p.model_dump(mode="json") for p in protocols}),
            "headline": protocols[0].name,
            "reference": reference.digest,
            "held_out": json.dumps(versions(held_out)),
            **({} if tau is None else {TAU: repr(tau)}),
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
    if not {"label", "counted"} <= set(table.column_names) or b"headline" not in (table.schema.metadata or {}):
        raise InputError(
            "this parquet file was not written by an evaluation, or by one of an earlier version",
            source=path,
            remedy=f"give the {TABLE} of an evaluation",
        )
    return table
