"""The crystals that the report shows one by one: which, in what order, why they were chosen, and as what file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.scoring import crystals_of
from crystalforge.evaluation.report.cif import symmetrised
from crystalforge.evaluation.report.figures import spacegroup_symbol
from crystalforge.evaluation.report.text import signed


def choose(table: pa.Table, count: int) -> pa.Table:
    """The `count` most interesting rows, best first.

    Order: S.U.N. ones by E_hull; then new ones, the valid before the others, by E_hull; then the rest likewise.
    Only built crystals are shown, and of each group of equal crystals only the first; what several trainings of one
    model wrote is told apart by formula, space group and energy alone.
    """
    shown = np.flatnonzero(_flag(table, "built") & _flag(table, "unique"))
    energy = np.nan_to_num(_number(table, "e_above_hull"), nan=math.inf)
    keys = (
        energy,
        ~(_flag(table, "valid") | _flag(table, "sun")),
        ~(_flag(table, "novel") & _flag(table, "structure_valid")),
        ~_flag(table, "sun"),
    )
    order = np.lexsort(tuple(key[shown] for key in keys))
    ranked = table.take(pa.array(shown[order]))
    names = ("label", "formula", "spacegroup", "e_above_hull")
    columns = [ranked.column(name).to_pylist() for name in names if name in ranked.column_names]
    keys = [tuple(round(x, 4) if isinstance(x, float) else x for x in row) for row in zip(*columns, strict=True)]
    seeds = ranked.column("seed").to_pylist()
    first: dict[tuple[Any, ...], int] = {}
    kept = [k for k, (key, seed) in enumerate(zip(keys, seeds, strict=True)) if first.setdefault(key, seed) == seed]
    return ranked.take(pa.array(kept[:count], pa.int64()))


def records(table: pa.Table, rules: dict[str, Any]) -> list[dict[str, Any]]:
    """One JSON-able record per row: what the table, the viewer and the download need.

    The structure is the conventional cell, as is the CIF; see `cif.symmetrised`.
    """
    rows = table.to_pylist()
    sizes = _group_sizes(table)
    return [
        record(row, crystal, rules, copies)
        for row, crystal, copies in zip(rows, crystals_of(table), sizes, strict=True)
        if crystal is not None
    ]


def record(row: dict[str, Any], crystal: Crystal, rules: dict[str, Any], copies: int) -> dict[str, Any]:
    """See `records`; copies: how many samples are the same crystal, 0 if unknown."""
    group, cell, cif = symmetrised(crystal)
    name = f"{row['formula']}_{row['label']}_{row['seed']}_{row['index']}"
    return {
        "id": f"{row['label']}/{row['seed']}/{row['index']}",
        "file": "".join(c if c.isalnum() or c in "-_" else "-" for c in name),
        "label": row["label"],
        "formula": row["formula"],
        "group": group,
        "symbol": spacegroup_symbol(group),
        "atoms": row["n_atoms"],
        "energy": _rounded(row.get("e_above_hull")),
        "heldOut": _rounded(row.get("held_out_e_above_hull")),
        "relaxed": _rounded(row.get("relaxed_e_above_hull")),
        "rmsd": _rounded(row.get("relaxed_rmsd")),
        "gap": _rounded(row.get("band_gap"), 2),
        "constant": _rounded(row.get("dielectric_constant"), 2),
        "reward": _rounded(row["reward"]),
        "logProb": _rounded(row["log_prob"], 2),
        "stable": bool(row.get("stable", False)),
        "novel": bool(row["novel"]),
        "unique": bool(row["unique"]),
        "sun": bool(row.get("sun", False)),
        "valid": bool(row["valid"]),
        "nearest": _nearest(row),
        "why": _why(row, rules, copies),
        "lattice": [round(float(x), 4) for x in cell.lattice.ravel()],
        "numbers": [int(z) for z in cell.numbers],
        "frac": [round(float(x), 5) for x in cell.frac.ravel()],
        "cif": cif,
    }


def _why(row: dict[str, Any], rules: dict[str, Any], copies: int) -> list[str]:
    """In words, what speaks for and against the crystal."""
    reasons = []
    energy, limit = row.get("e_above_hull"), rules.get("stable_at")
    if energy is not None and math.isfinite(energy):
        verdict = "" if limit is None else f", {'below' if row.get('stable') else 'not below'} {limit:g}"
        reasons.append(f"The energy above hull is {signed(f'{energy:.3f}')} eV/atom{verdict}.")
    held_out = row.get("held_out_e_above_hull")
    if held_out is not None and math.isfinite(held_out):
        reasons.append(f"A potential that the reward does not use gives {signed(f'{held_out:.3f}')} eV/atom.")
    relaxed = row.get("relaxed_e_above_hull")
    if relaxed is not None and math.isfinite(relaxed):
        moved = row.get("relaxed_rmsd", math.nan)
        far = f", {moved:.2f} Å away" if math.isfinite(moved) else ", as another structure"
        reasons.append(f"Relaxed{far}, it lies at {signed(f'{relaxed:.3f}')} eV/atom.")
    reasons.append(
        "No known crystal matches it."
        if row["novel"]
        else "It matches a known crystal."
        if row.get("reference_match")
        else "It cannot be compared with known crystals."
    )
    if copies > 1:
        reasons.append(f"It was drawn {copies} times; this is the first.")
    if not row["structure_valid"]:
        reasons.append(f"Two atoms are only {row['min_distance']:.2f} Å apart.")
    if not row["composition_valid"]:
        reasons.append("No usual oxidation states make it neutral.")
    return reasons


def _nearest(row: dict[str, Any]) -> dict[str, Any] | None:
    if row.get("nearest_id") is None:
        return None
    distance, kind = row["nearest_distance"], row["nearest_kind"]
    return {
        "id": row["nearest_id"],
        "formula": row["nearest_formula"],
        "kind": kind,
        "text": {
            "match": f"same crystal, rms {distance:.3f}",
            "polymorph": "other structure of the same formula",
            "isostructural": f"same structure type, distance {distance:.1f}",
            "similar": f"most similar formula, distance {distance:.1f}",
        }[kind],
    }


def _group_sizes(table: pa.Table) -> list[int]:
    return table.column("copies").to_pylist() if "copies" in table.column_names else [0] * len(table)


def with_copies(table: pa.Table) -> pa.Table:
    """Add the column `copies`: how many samples of the same model and seed are the same crystal."""
    groups = _number(table, "group").astype(np.int64)
    counts = np.bincount(groups[groups >= 0], minlength=len(table))
    copies = np.where(groups >= 0, counts[np.maximum(groups, 0)], 0)
    return table.append_column("copies", pa.array(copies))


def _flag(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return table.column(name).to_numpy().astype(bool)


def _number(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return table.column(name).to_numpy()


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
