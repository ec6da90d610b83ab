"""What an evaluation has computed so far, as small files: whatever is finished is never computed again.

Each source of samples has a folder named by everything that decides its samples. In it lie, each in a folder named by
who made it: the samples with the reward's answers, every held-out judge's answers, the relaxed crystals a few at a
time, and the judges' answers for those. Another judge or another relaxation therefore adds files and invalidates
none; an evaluation killed at any instant loses the piece it was working on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.evaluation.config import MOST_HELD_OUT
from crystalforge.evaluation.drawing.samples import Source
from crystalforge.evaluation.judging.relaxing import Relaxer, relaxed_crystals, relaxed_table
from crystalforge.evaluation.judging.scoring import crystals_of, judged_by, score
from crystalforge.rewards.protocol import Reward

FORMAT = 2  # of the pieces; raised when their columns change, so that older ones are made again
NOT_ASKED = -1  # status of a crystal that was not among those to relax
HASH = 12  # characters of a digest that a folder's name shows

Tick = Callable[[int, str], None]  # called with how many crystals were done and what was done to them


def held_out_prefix(number: int) -> str:
    """Prefix of the columns of held-out judge `number`, counted from 0.

    >>> held_out_prefix(0), held_out_prefix(1)
    ('held_out_', 'held_out_2_')
    """
    assert 0 <= number < MOST_HELD_OUT
    return "held_out_" if number == 0 else f"held_out_{number + 1}_"


class Parts:
    """The pieces of one source's evaluation under `out`.

    lineage: values of run_id, model_hash and data_hash; `chunk`: crystals drawn and scored at a time.
    """

    def __init__(self, out: Path, source: Source, lineage: Mapping[str, str], chunk: int) -> None:
        self.source, self.lineage, self.chunk = source, dict(lineage), chunk
        key = sha256_json(
            {
                "format": FORMAT,
                "source": source.identity(),
                "label": source.label,
                "seed": source.seed,
                # not the run: a resumed evaluation may have a new one, and rows keep the run that scored them
                "lineage": {name: value for name, value in lineage.items() if name != "run_id"},
                "chunk": chunk,
            }
        )
        self.folder = out / f"{source.label}-{source.seed}-{key[:16]}"

    def scored(self, reward: Reward, tick: Tick) -> pa.Table:
        """All samples with the reward's answers."""
        folder = self.folder / f"reward-{_short(reward)}"

        def make(first: int, count: int) -> pa.Table:
            return score(self.source.draw(first, count), reward, lineage=self.lineage)

        return pieces(folder, len(self.source), self.chunk, make, tick, "score")

    def opinion(self, judge: Reward, table: pa.Table, tick: Tick) -> pa.Table:
        """A further judge's answers for the samples in `table`; columns without a prefix."""

        def make(first: int, count: int) -> pa.Table:
            return pa.table(judged_by(judge, crystals_of(table.slice(first, count))))

        return pieces(self.folder / f"held-out-{_short(judge)}", len(table), self.chunk, make, tick, "held out")

    def relaxed(
        self, relaxer: Relaxer, judges: Mapping[str, Reward], table: pa.Table, rows: Int64[np.ndarray, " k"],
        piece: int, tick: Tick,
    ) -> pa.Table:  # fmt: skip
        """The columns of `relaxed_table` and, prefixed by the names in `judges`, what each judge says of the relaxed
        crystals, for the given rows of `table`; all columns' names begin with `relaxed_`.
        """
        chosen = table.take(pa.array(rows, pa.int64()))
        # `chosen_rows` depends on the number of samples, and a smaller subset begins a larger one.
        folder = self.folder / f"relaxed-{relaxer.identity()[:HASH]}" / f"of-{len(table)}"

        def move(first: int, count: int) -> pa.Table:
            return relaxed_table(relaxer, crystals_of(chosen.slice(first, count)))

        found = pieces(folder, len(rows), piece, move, tick, "relax")
        after = relaxed_crystals(chosen.column("atomic_numbers").to_pylist(), found)
        for prefix, judge in judges.items():

            def ask(first: int, count: int, judge: Reward = judge) -> pa.Table:
                return pa.table(judged_by(judge, after[first : first + count]))

            said = pieces(folder / f"judged-{_short(judge)}", len(rows), self.chunk, ask, lambda *_: None, "")
            found = append(found, said, f"relaxed_{prefix}")
        return found


def pieces(folder: Path, size: int, step: int, make: Callable[[int, int], pa.Table], tick: Tick, what: str) -> pa.Table:
    """The rows that `make(first, count)` gives for 0..size-1, `step` at a time, each piece a file in `folder`."""
    parts = []
    for first in range(0, size, step):
        count = min(step, size - first)
        file = folder / f"{first:08d}.parquet"
        part = _read(file, count)
        if part is None:
            made = make(first, count)
            assert len(made) == count, "a source must give as many samples as asked for"
            with atomic_file(file) as temporary:
                pq.write_table(made, temporary)
            part = pq.read_table(file)  # so that a resumed evaluation has the very same columns
        parts.append(part)
        tick(count, what)
    return pa.concat_tables(parts, promote_options="default") if parts else make(0, 0)


def scattered(part: pa.Table, rows: Int64[np.ndarray, " k"], size: int) -> pa.Table:
    """The k rows of `part` at `rows` of a table of `size` rows; elsewhere NaN, NOT_ASKED, False or an empty list."""
    where = np.full(size, len(part), dtype=np.int64)
    where[rows] = np.arange(len(rows))
    columns = {}
    for field, column in zip(part.schema, part.columns, strict=True):
        blank = pa.array([_blank(field.type)], field.type)
        columns[field.name] = pa.chunked_array([*column.chunks, blank], field.type).take(pa.array(where, pa.int64()))
    return pa.table(columns).combine_chunks()


def append(table: pa.Table, columns: pa.Table, prefix: str = "") -> pa.Table:
    """`table` with the columns of another one, their names prefixed."""
    for name in columns.column_names:
        table = table.append_column(f"{prefix}{name}", columns.column(name))
    return table


def _blank(kind: pa.DataType) -> float | int | bool | list[float]:
    if pa.types.is_floating(kind):
        return float("nan")
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_integer(kind):
        return NOT_ASKED
    assert pa.types.is_list(kind), kind
    return []


def _short(judge: Reward) -> str:
    return judge.version.digest[:HASH]


def _read(file: Path, count: int) -> pa.Table | None:
    """An earlier run's piece; None when absent. A damaged or short one is made again, and it is said so."""
    if not file.exists():
        return None
    try:
        part = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        print(f"{file} is damaged ({error}); its samples are scored again", file=sys.stderr)
        return None
    return part if len(part) == count else None


def versions(judges: Sequence[Reward]) -> list[dict[str, str]]:
    """What judged, for the table's metadata."""
    return [
        {"prefix": held_out_prefix(k), "name": judge.version.name, "digest": judge.version.digest}
        for k, judge in enumerate(judges)
    ]
