"""The crystals that the report shows one by one: which, in what order, why they were chosen, and as what file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.scoring import crystals_of
from crystalforge.evaluation.judging.stability import energy_by, other_judges
from crystalforge.evaluation.ranking.flags import Evidence, Flag, Level, flags_of, red
from crystalforge.evaluation.ranking.ranking import Standing, best_first
from crystalforge.evaluation.report.cif import symmetrised
from crystalforge.evaluation.report.figures import spacegroup_symbol
from crystalforge.evaluation.report.text import signed

if TYPE_CHECKING:
    from crystalforge.thermo.hull import HullStore, Surroundings

LIMIT = 0.1  # eV/atom: what judges must find it below to agree, where the protocol has no limit of its own
FLAGS = pa.list_(pa.struct([("name", pa.string()), ("level", pa.string()), ("text", pa.string())]))


def choose(table: pa.Table, count: int, *, hull: HullStore | None = None, limit: float = LIMIT) -> pa.Table:
    """The `count` most interesting rows, best first, with what speaks against each in the column `flags`.

    Order: without a red flag before with one; S.U.N. ones first, then new ones, the valid before the others, then the
    rest; within each by the ranking of `evaluation.ranking`: agreement of the judges at `limit` eV/atom, then the
    larger of their energies, where nothing is gained far below the hull. hull: to say what each competes with. Only
    built crystals are shown, and of each group of equal crystals only the first; what several trainings of one model
    wrote is told apart by formula, space group and energy alone.
    """
    shown = table.take(pa.array(np.flatnonzero(_flag(table, "built") & _flag(table, "unique"))))
    order = _order(shown, [flags_of(evidence) for evidence in _evidence(shown, None)], limit)
    ranked = shown.take(pa.array(order, pa.int64()))
    names = ("label", "formula", "spacegroup", "e_above_hull")
    columns = [ranked.column(name).to_pylist() for name in names if name in ranked.column_names]
    keys = [tuple(round(x, 4) if isinstance(x, float) else x for x in row) for row in zip(*columns, strict=True)]
    seeds = ranked.column("seed").to_pylist()
    first: dict[tuple[Any, ...], int] = {}
    kept = [k for k, (key, seed) in enumerate(zip(keys, seeds, strict=True)) if first.setdefault(key, seed) == seed]
    # What the hull says is asked of those alone that may be shown: a decomposition takes a linear program.
    finalists = ranked.take(pa.array(kept[: 2 * count], pa.int64()))
    flags = [flags_of(evidence) for evidence in _evidence(finalists, hull)]
    best = _order(finalists, flags, limit)[:count]
    texts = [[{"name": f.name, "level": f.level.name.lower(), "text": f.text} for f in flags[k]] for k in best]
    return finalists.take(pa.array(best, pa.int64())).append_column("flags", pa.array(texts, FLAGS))


def _order(table: pa.Table, flags: Sequence[Sequence[Flag]], limit: float) -> list[int]:
    """Positions of the rows, best first; see `choose`."""
    energies = list(zip(*(values.tolist() for values in opinions(table).values()), strict=True)) or [()] * len(table)
    standings = [
        Standing(tuple(energy), red(found), sum(flag.level is Level.WARNING for flag in found))
        for energy, found in zip(energies, flags, strict=True)
    ]
    rank = np.empty(len(table), dtype=np.int64)
    rank[best_first(standings, limit)] = np.arange(len(table))
    keys = (
        rank,
        ~(_flag(table, "valid") | _flag(table, "sun")),
        ~(_flag(table, "novel") & _flag(table, "structure_valid")),
        ~_flag(table, "sun"),
        np.array([one.red for one in standings], dtype=bool),
    )
    return np.lexsort(keys).tolist()


def opinions(table: pa.Table) -> dict[str, Float64[np.ndarray, " n"]]:
    """E_hull by each judge's name, after relaxing where the crystal was relaxed; judges that give none are left out."""
    found = {}
    for prefix in ["", *(name for name in other_judges(table) if name.startswith("held_out_"))]:
        energy, relaxed = energy_by(table, prefix), energy_by(table, f"relaxed_{prefix}")
        if energy is not None:
            number = prefix.removeprefix("held_out_").removesuffix("_")
            name = "the reward" if not prefix else f"held-out judge {number}".strip()
            found[name] = energy if relaxed is None else np.where(np.isfinite(relaxed), relaxed, energy)
    return found


def _evidence(table: pa.Table, hull: HullStore | None) -> Iterator[Evidence]:
    energies = opinions(table)
    relaxed = _flag(table, "relaxed_asked")
    converged, rmsd = _flag(table, "relaxed_converged"), _number(table, "relaxed_rmsd")
    neutral = _flag(table, "composition_valid")
    around: dict[tuple[int, ...], Surroundings] = {}
    for row, crystal in enumerate(crystals_of(table)):
        assert crystal is not None, "only built crystals are shown"
        key = tuple(sorted(crystal.numbers.tolist()))
        if hull is not None and key not in around:
            around[key] = hull.around(crystal.numbers)
        moved = math.inf if math.isnan(rmsd[row]) else float(rmsd[row])
        yield Evidence(
            crystal,
            {name: float(values[row]) for name, values in energies.items()},
            around.get(key),
            rmsd=moved if relaxed[row] else None,
            converged=bool(converged[row]) if relaxed[row] else None,
            neutral=bool(neutral[row]) if "composition_valid" in table.column_names else None,
        )


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
        "flags": row.get("flags") or [],
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
