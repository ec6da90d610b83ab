"""Tables: figure 4's numbers, S2 (candidates) and S3 (retrieval). A table is a list of rows with equal keys."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from crystalforge.evaluation.metrics.measures import METRICS, estimate
from crystalforge.evaluation.metrics.pareto import CONSTANT, GAP
from crystalforge.evaluation.metrics.spacegroups import by_spacegroup
from crystalforge.evaluation.metrics.statistics import Estimate
from crystalforge.evaluation.paper.runs import Runs
from crystalforge.evaluation.report.figures import spacegroup_symbol

Row = dict[str, Any]
QUANTILES = (0.5, 0.9, 0.99)  # of the baseline's rewards: above these a sample counts in the rows of table S3
CANDIDATES = 20  # of each model in table S2
INTERVAL = 4  # significant digits of a figure in a table


def headline(runs: Runs) -> list[Row]:
    """Every figure of every model with its interval."""
    return [
        {"model": label, "figure": name, "unit": METRICS[name][1], **_figure(found)}
        for label in runs.labels
        for name, found in estimate(runs.of(label)).items()
        if math.isfinite(found.value)
    ]


def spacegroups(runs: Runs) -> list[Row]:
    """Figure 4 as numbers: stable share by space group; n counts the samples (or seeds) behind it."""
    return [
        {"model": label, "spacegroup": group, "symbol": spacegroup_symbol(group), **_figure(found)}
        for label, shares in by_spacegroup(runs.table).items()
        for group, found in sorted(shares.items())
    ]


def candidates(runs: Runs, count: int = CANDIDATES) -> list[Row]:
    """Table S2: the best different crystals of every model but the baseline.

    Best: by figure of merit where the table has both properties, among the valid ones that are stable to whoever judged
    it (the reward, else the held-out judge; all of them when nobody did); else by E_hull among the stable ones.
    Energies in eV/atom, band gaps in eV; `known`: whether it matches a known crystal.
    """
    found: list[Row] = []
    for label in runs.labels[1:] or runs.labels:
        table = runs.of(label)
        merit = _numbers(table, CONSTANT) * np.maximum(_numbers(table, GAP), 0.0)
        energy = _numbers(table, "e_above_hull")
        shown = _flags(table, "unique") & _flags(table, "built")
        if np.isfinite(merit).any():
            shown &= np.isfinite(merit) & _flags(table, "valid")
            verdicts = [name for name in ("stable", "held_out_stable") if name in table.column_names]
            if verdicts:
                shown &= _flags(table, verdicts[0])
            order = np.argsort(-merit[shown], kind="stable")
        else:
            shown &= np.isfinite(energy) & _flags(table, "stable")
            order = np.argsort(energy[shown], kind="stable")
        chosen = np.flatnonzero(shown)[order][:count]
        for row, value in zip(table.take(pa.array(chosen, pa.int64())).to_pylist(), merit[chosen], strict=True):
            found.append(
                {
                    "model": label,
                    "formula": row["formula"],
                    "spacegroup": row["spacegroup"],
                    "symbol": spacegroup_symbol(row["spacegroup"]) if row["spacegroup"] else "",
                    "e_above_hull": _rounded(row.get("e_above_hull")),
                    "held_out_e_above_hull": _rounded(row.get("held_out_e_above_hull")),
                    "relaxed_e_above_hull": _rounded(row.get("relaxed_e_above_hull")),
                    "band_gap": _rounded(row.get(GAP)),
                    "dielectric_constant": _rounded(row.get(CONSTANT)),
                    "figure_of_merit": _rounded(value),
                    "known": "yes" if row["reference_match"] else "no",
                    "nearest": row.get("nearest_id") or "",
                    "nearest_formula": row.get("nearest_formula") or "",
                    "nearest_kind": row.get("nearest_kind") or "",
                    "nearest_distance": _rounded(row.get("nearest_distance")),
                    "sample": f"{row['label']}/{row['seed']}/{row['index']}",
                }
            )
    return found


def retrieval(runs: Runs) -> list[Row]:
    """Table S3: how many samples, above growing thresholds of the reward, are crystals that are known already.

    Thresholds are quantiles of the baseline's rewards (`all`: no threshold). samples: above it; known: those that match
    a known crystal; different_known: how many known crystals they are; new: different samples that match none.
    """
    rewards = _numbers(runs.of(runs.labels[0]), "reward")
    limits = [("all", -math.inf)]
    limits += [(f"top {100 * (1 - q):.3g} % of the baseline", float(np.quantile(rewards, q))) for q in QUANTILES]
    found: list[Row] = []
    for caption, limit in limits:
        for label in runs.labels:
            table = runs.of(label)
            above = (_numbers(table, "reward") >= limit) & _flags(table, "built")
            known = above & _flags(table, "reference_match")
            names = table.column("nearest_id").to_pylist() if "nearest_id" in table.column_names else []
            groups = table.column("group").to_numpy()
            found.append(
                {
                    "reward": caption,
                    "at_least": None if math.isinf(limit) else round(limit, INTERVAL),
                    "model": label,
                    "drawn": len(table),
                    "samples": int(above.sum()),
                    "known": int(known.sum()),
                    "different_known": len({names[k] for k in np.flatnonzero(known)}) if names else None,
                    "new": len(set(groups[above & _flags(table, "novel")].tolist())),
                }
            )
    return found


def as_csv(rows: Sequence[Row]) -> str:
    """Comma-separated text with a header; empty where unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table without the columns in which nothing is known."""
    if not rows:
        return "Nothing to show.\n"
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(row[name]) for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{INTERVAL}g}" if isinstance(value, float) else str(value)


def _figure(found: Estimate) -> Mapping[str, Any]:
    known = found.as_dict().items()
    return {k: v if v is None or k == "n" else float(f"{v:.{INTERVAL}g}") for k, v in known}


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return table.column(name).to_numpy()


def _flags(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return table.column(name).to_numpy().astype(bool)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), INTERVAL)
