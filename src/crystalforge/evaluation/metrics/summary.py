"""From the table of crystals to the figures that are quoted: every model of it, and every model minus the first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.measures import by_label, compare, estimate, experiments, is_repeated, measure
from crystalforge.evaluation.metrics.objective import objectives
from crystalforge.evaluation.metrics.significance import p_values
from crystalforge.evaluation.metrics.statistics import Estimate
from crystalforge.rewards.protocol import Status


def summarise(table: pa.Table, *, protocol: str | None = None) -> dict[str, Any]:
    """Figures of every model in the table, and of every model minus the first one.

    protocol: one of those the table was judged by; by default its headline. Returns
    `{"protocol": rules, "models": {label: {"n", "seeds", "experiments", "metrics": {name: {value, low, high, n}},
    "status": {...}, "per_seed": {seed: {name: value}}}}, "baseline": first label, "comparison": {label: {name: {value,
    low, high, n}}}, "tests": {label: {name: {"test", "p"}}}}`; a figure that was not measured has value None.
    `experiments`: how many models are behind the label; of several, n is their number too. tests: see `significance`;
    for the headline protocol alone. `objective`: see `objective.objectives`; for the headline protocol alone, and where
    the table says what a nat costs. Everything is JSON.
    """
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    rules = json.loads(metadata["protocols"])
    headline = metadata["headline"]
    name = headline if protocol is None else protocol
    suffix = "" if name == headline else f":{name}"
    parts = by_label(table)
    labels = list(parts)
    estimates = {label: estimate(part, suffix=suffix) for label, part in parts.items()}
    models = {label: _model(part, estimates[label], suffix) for label, part in parts.items()}
    return {
        "protocol": rules[name],
        "models": models,
        "baseline": labels[0],
        "comparison": {
            label: {
                metric: found.as_dict()
                for metric, found in compare(parts[labels[0]], parts[label], suffix=suffix).items()
            }
            for label in labels[1:]
        },
        "tests": {label: p_values(parts[labels[0]], parts[label]) for label in labels[1:]} if not suffix else {},
        "objective": objectives(table) if not suffix else None,
    }


def across_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several experiments (different training seeds) as one: means of their figures, intervals from their spread.

    Takes what `summarise` returned for each; all must have the same protocol and models. With k experiments the
    Student-t interval has k - 1 degrees of freedom.
    """
    assert summaries, "nothing to aggregate"
    first = summaries[0]
    assert all(other["protocol"] == first["protocol"] for other in summaries), "different protocols"

    def merged(tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            name: statistics.across_seeds(
                [Estimate(np.nan if t[name]["value"] is None else t[name]["value"], np.nan, np.nan, 1) for t in tables]
            ).as_dict()
            for name in tables[0]
            if all(name in table for table in tables)
        }

    return {
        "protocol": first["protocol"],
        "experiments": len(summaries),
        "models": {
            label: {"metrics": merged([s["models"][label]["metrics"] for s in summaries])} for label in first["models"]
        },
        "comparison": {label: merged([s["comparison"][label] for s in summaries]) for label in first["comparison"]},
    }


def status_counts(table: pa.Table) -> dict[str, int]:
    """How many rows ended in each status of the reward, by name."""
    codes, numbers = np.unique(table.column("status").to_numpy().astype(np.int64), return_counts=True)
    return {Status(int(code)).name.lower(): int(n) for code, n in zip(codes, numbers, strict=True)}


def per_spacegroup(table: pa.Table, *, suffix: str = "") -> dict[int, dict[str, Any]]:
    """The figures of one model for each space group that it wrote, most frequent first."""
    groups, numbers = np.unique(table.column("spacegroup").to_numpy().astype(np.int64), return_counts=True)
    order = np.argsort(-numbers, kind="stable")
    return {
        int(groups[k]): {
            name: estimate.as_dict()
            for name, estimate in measure(table.filter(pc.field("spacegroup") == int(groups[k])), suffix=suffix).items()
        }
        for k in order
    }


def _model(table: pa.Table, estimates: Mapping[str, Estimate], suffix: str) -> dict[str, Any]:
    seeds = sorted(set(table.column("seed").to_pylist()))
    return {
        "n": len(table),
        "seeds": seeds,
        "experiments": len(experiments(table)) if is_repeated(table) else 1,
        "metrics": {name: estimate.as_dict() for name, estimate in estimates.items()},
        "status": status_counts(table),
        "per_seed": {
            str(seed): {
                name: estimate.as_dict()["value"]
                for name, estimate in measure(table.filter(pc.field("seed") == seed), suffix=suffix).items()
            }
            for seed in seeds
        },
    }
