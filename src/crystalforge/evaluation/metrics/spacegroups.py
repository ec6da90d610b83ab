"""Figures by space group: how well a model does in each of fourteen groups, two of every crystal system."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crystalforge.evaluation.metrics.measures import by_label, estimate
from crystalforge.evaluation.metrics.statistics import Estimate

SYSTEMS = (
    ("triclinic", 1, 2),
    ("monoclinic", 3, 15),
    ("orthorhombic", 16, 74),
    ("tetragonal", 75, 142),
    ("trigonal", 143, 167),
    ("hexagonal", 168, 194),
    ("cubic", 195, 230),
)
GROUPS_PER_SYSTEM = 2


def fourteen_groups(table: pa.Table) -> list[int]:
    """The two commonest space groups of each crystal system among the rows, by number; fewer where fewer occur."""
    groups, counts = np.unique(table.column("spacegroup").to_numpy(), return_counts=True)
    chosen: list[int] = []
    for _, low, high in SYSTEMS:
        inside = np.flatnonzero((groups >= low) & (groups <= high))
        order = inside[np.argsort(-counts[inside], kind="stable")]
        chosen += [int(groups[k]) for k in order[:GROUPS_PER_SYSTEM]]
    return sorted(chosen)


def by_spacegroup(table: pa.Table, metric: str = "stable_rate") -> dict[str, dict[int, Estimate]]:
    """A figure of every model for each of the baseline's fourteen groups, for those that have it and were drawn."""
    parts = by_label(table)
    groups = fourteen_groups(next(iter(parts.values())))
    found: dict[str, dict[int, Estimate]] = {}
    for label, rows in parts.items():
        inside = {group: rows.filter(pc.field("spacegroup") == group) for group in groups}
        values = {group: estimate(part).get(metric) for group, part in inside.items() if len(part)}
        found[label] = {group: value for group, value in values.items() if value is not None}
    return found
