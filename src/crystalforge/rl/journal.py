"""Everything that was ever drawn and scored: one small Parquet file per step.

It serves twice. While a run lasts it is a journal: a run killed after scoring reads the scores back rather than
paying for them again. Afterwards it is the record in which the best crystals seen in training are looked up.

Columns: index, step, spacegroup, wyckoff, element, coords, lattice (lists, without pads), reward, status, log_prob, and
`component.<name>` for each part of the reward. Pages carry checksums.

Shapes: B crystals of one step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int32, Int64

from crystalforge.common.files import atomic_file
from crystalforge.crystal.tokens import MAX_SITES, Tokens
from crystalforge.rewards.protocol import Scores

log = logging.getLogger(__name__)

COMPONENT = "component."


@dataclass(frozen=True, eq=False)
class Scored:
    """One step's crystals with their scores.

    index: the sampler's number of each crystal, unique in the run. log_prob: under the policy that drew it, by the
    sampler (nats).
    """

    index: Int64[np.ndarray, " B"]
    tokens: Tokens
    scores: Scores
    log_prob: Float64[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.index)


def step_file(folder: Path, step: int) -> Path:
    """Where the record of `step` lies."""
    return folder / f"step-{step:07d}.parquet"


def write(path: Path, step: int, scored: Scored) -> None:
    """Record one step, atomically."""
    tokens, scores = scored.tokens, scored.scores
    sites = tokens.n_sites
    columns: dict[str, Any] = {
        "index": scored.index,
        "step": np.full(len(scored), step, dtype=np.int32),
        "spacegroup": tokens.spacegroup,
        "wyckoff": [row[:n].astype(np.int8) for row, n in zip(tokens.wyckoff, sites, strict=True)],
        "element": [row[:n].astype(np.int8) for row, n in zip(tokens.element, sites, strict=True)],
        "coords": [row[:n].reshape(-1) for row, n in zip(tokens.coords, sites, strict=True)],
        "lattice": list(tokens.lattice),
        "reward": scores.values,
        "status": scores.status,
        "log_prob": scored.log_prob,
    } | {COMPONENT + name: values for name, values in scores.components.items()}
    table = pa.table(columns).replace_schema_metadata({"slots": str(tokens.wyckoff.shape[1])})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read(path: Path) -> Scored:
    """The record of one step; raises OSError or ValueError when the file is damaged."""
    table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
    slots = int((table.schema.metadata or {}).get(b"slots", MAX_SITES))

    def padded(name: str, width: int) -> np.ndarray:
        lists = table[name].combine_chunks()
        values, ends = lists.flatten().to_numpy(), lists.offsets.to_numpy()
        out = np.zeros((len(lists), slots * width))
        out[np.arange(slots * width) < np.diff(ends)[:, None]] = values  # both run row by row
        return out

    def column(name: str, dtype: type) -> np.ndarray:
        return table[name].to_numpy().astype(dtype)  # a writable copy

    tokens = Tokens(
        column("spacegroup", np.int32),
        padded("wyckoff", 1).astype(np.int32),
        padded("element", 1).astype(np.int32),
        padded("coords", 3).reshape(-1, slots, 3),
        table["lattice"].combine_chunks().flatten().to_numpy().reshape(-1, 6).copy(),
    )
    components = {
        name.removeprefix(COMPONENT): column(name, np.float64)
        for name in table.column_names
        if name.startswith(COMPONENT)
    }
    scores = Scores(column("reward", np.float64), column("status", np.int32), components)
    return Scored(column("index", np.int64), tokens, scores, column("log_prob", np.float64))


def recall(path: Path, index: Int64[np.ndarray, " B"]) -> Scored | None:
    """The record at `path` if it is there, whole, and of exactly the crystals numbered `index`."""
    return _recall(path, lambda found: np.array_equal(found, index))


def recall_from(path: Path, first_index: int) -> Scored | None:
    """`recall` of however many crystals, of which the first is numbered `first_index`."""
    return _recall(path, lambda found: np.array_equal(found, first_index + np.arange(len(found))))


def _recall(path: Path, expected: Callable[[Int64[np.ndarray, " B"]], bool]) -> Scored | None:
    if not path.exists():
        return None
    try:
        scored = read(path)
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): its crystals are drawn and scored again", path, error)
        return None
    if not expected(scored.index):
        log.warning("%s holds other crystals than this step's: they are drawn and scored again", path)
        return None
    return scored


def write_scores(path: Path, index: Int64[np.ndarray, " B"], scores: Scores) -> None:
    """Record scores alone (the held-out reward's), atomically."""
    columns: dict[str, Any] = {"index": index, "reward": scores.values, "status": scores.status}
    columns |= {COMPONENT + name: values for name, values in scores.components.items()}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", write_page_checksum=True)


def recall_scores(path: Path, index: Int64[np.ndarray, " B"]) -> Scores | None:
    """The scores at `path` if they are there, whole, and of exactly the crystals numbered `index`."""
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
        if not np.array_equal(table["index"].to_numpy(), index):
            return None
        names = [name for name in table.column_names if name.startswith(COMPONENT)]
        return Scores(
            table["reward"].to_numpy().astype(np.float64),
            table["status"].to_numpy().astype(np.int32),
            {name.removeprefix(COMPONENT): table[name].to_numpy().astype(np.float64) for name in names},
        )
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): its crystals are scored again", path, error)
        return None


def steps(folder: Path, *, before: int | None = None) -> Iterator[tuple[int, Scored]]:
    """Every readable record of a run in order of steps (`before`: those of earlier steps only)."""
    for path in sorted(folder.glob("step-*.parquet")):
        step = int(path.stem.removeprefix("step-"))
        if before is not None and step >= before:
            return
        try:
            yield step, read(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s is damaged (%s): left out", path, error)


def join(parts: Sequence[Scored]) -> Scored:
    """Several steps' crystals, one after the other."""
    return Scored(
        np.concatenate([part.index for part in parts]),
        Tokens.concatenate([part.tokens for part in parts]),
        Scores.concatenate([part.scores for part in parts]),
        np.concatenate([part.log_prob for part in parts]),
    )


def pick(scored: Scored, rows: Int64[np.ndarray, " n"]) -> Scored:
    """Rows of a record; a row may be taken more than once."""
    s = scored.scores
    return Scored(
        scored.index[rows],
        scored.tokens[rows],
        Scores(s.values[rows], s.status[rows], {name: values[rows] for name, values in s.components.items()}),
        scored.log_prob[rows],
    )


def material_keys(tokens: Tokens) -> list[bytes]:
    """What each crystal is made of, whatever its free coordinates and cell: equal keys are the same prototype.

    The key is the space group with the sorted (letter, element) pairs, so it calls two crystals the same a little
    too often: a cheap lower bound of uniqueness, fit for watching a run.
    """
    pairs: Int32[np.ndarray, "B S"] = np.sort(tokens.wyckoff * 128 + tokens.element, axis=1)
    return [g.tobytes() + row.tobytes() for g, row in zip(tokens.spacegroup, pairs, strict=True)]


def unique_share(tokens: Tokens) -> float:
    """Distinct crystals over all; see `material_keys` for when two count as the same."""
    return len(set(material_keys(tokens))) / len(tokens)
