"""Finished evaluations, gathered into one table of crystals and one set of training courses."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crystalforge.common.errors import InputError
from crystalforge.evaluation.evaluate import TABLE, read_table

PLACES = ("", "evaluate", "evaluation")  # where a run's table may lie, below the directory given
HISTORIES = "histories.json"
COURSE = re.compile(r"^finetune(?: (?P<label>.*?))?(?: \d+)?$")  # `finetune`, `finetune ppo`, `finetune ppo 2`
TUNED = "tuned"  # what an evaluation calls the output of its own fine-tuning
Course = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Runs:
    """table: the rows of all runs, each crystal of each model once; rules: the protocol's; courses: for each label the
    histories of its fine-tunings, one per seed."""

    table: pa.Table
    rules: dict[str, Any]
    courses: dict[str, list[Course]]

    @property
    def labels(self) -> list[str]:
        """Models in order of appearance; the first is the baseline."""
        return list(dict.fromkeys(self.table.column("label").to_pylist()))

    def of(self, label: str) -> pa.Table:
        """The rows of one model."""
        return self.table.filter(pc.field("label") == label)


def gather(runs: Iterable[tuple[str | None, Path]]) -> Runs:
    """Read the evaluations in `runs`: pairs of a name or None and the directory of an evaluation, a run or a study.

    A name takes the place of the label `tuned`: runs of one name are seeds of one method. Rows that several runs have
    in common (the base model, judged in each) count once. Raises InputError when a run holds no table, or when the runs
    were judged by different protocols.
    """
    tables: list[pa.Table] = []
    rules: dict[str, Any] = {}
    courses: dict[str, list[Course]] = {}
    for name, path in runs:
        file = _table_of(path)
        table = read_table(file)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        found = json.loads(metadata["protocols"])[metadata["headline"]]
        if rules and found != rules:
            raise InputError(
                f"was judged by {found['name']} version {found['version']}, the runs before it by {rules['name']} "
                f"version {rules['version']}",
                source=path,
                remedy="evaluate all runs by one protocol",
            )
        rules = found
        tables.append(_renamed(table, name))
        for label, course in _courses(file.parent):
            courses.setdefault(name if name and label == TUNED else label, []).append(course)
    if not tables:
        raise InputError("there is no run to draw", remedy="give directories of finished evaluations")
    return Runs(_joined(tables), rules, courses)


def _table_of(path: Path) -> Path:
    if path.is_file():
        return path
    for place in PLACES:
        if (path / place / TABLE).is_file():
            return path / place / TABLE
    raise InputError(f"holds no {TABLE}", source=path, remedy="give the output of `evaluate`, of `run` or of `study`")


def _renamed(table: pa.Table, name: str | None) -> pa.Table:
    if name is None:
        return table
    labels = [name if label == TUNED else label for label in table.column("label").to_pylist()]
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels))


def _courses(directory: Path) -> Iterable[tuple[str, Course]]:
    """(label, history) of each fine-tuning behind an evaluation, from its histories or from the run's own files."""
    if (directory / HISTORIES).is_file():
        for name, rows in json.loads((directory / HISTORIES).read_text()).items():
            found = COURSE.match(name)
            if found:
                yield found["label"] or TUNED, rows
        return
    for file in (directory.parent / "finetune" / "history.csv", directory / "history.csv"):
        if file.is_file():
            with file.open(newline="") as stream:
                yield TUNED, [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]
            return


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; group numbers, which are row numbers within a table, are moved on so that none coincide."""
    moved, rows = [], 0
    for table in tables:
        for number, name in enumerate(table.column_names):
            if name.split(":")[0] in ("group", "stable_group", "metastable_group"):
                values = table.column(name).to_numpy()
                table = table.set_column(number, name, pa.array(np.where(values >= 0, values + rows, -1)))
        rows += len(table)
        moved.append(table.replace_schema_metadata(tables[0].schema.metadata))
    whole = pa.concat_tables(moved, promote_options="default").combine_chunks()
    keys = zip(*(whole.column(name).to_pylist() for name in ("label", "model_hash", "seed", "index")), strict=True)
    first: dict[tuple[Any, ...], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return whole.take(pa.array(sorted(first.values())))
