"""The ranked list as a table, as CIFs, and what is known of each crystal on it.

Columns: rank (1 is the best), fulfils (whether it is what was asked for), formula, spacegroup and symbol of the relaxed
crystal, drawn_spacegroup, n_atoms; for each judge `<name>_e_above_hull` and `<name>_energy_per_atom` of the relaxed
crystal, with `_before` of the generated one (eV/atom, null where a judge has no answer or was not asked); worst and
agreement, which the rank is made of; rmsd (Å, null where it became another structure), volume_change (relative),
converged, steps; fall (eV/atom by which it fell when shaken at rest, 0 where it came back, null where it was not
shaken; with `keep_symmetry` it is listed as it was before); property, where one was wished for; flags; confirmed_by;
nearest_id, nearest_formula, nearest_kind, nearest_distance; lineage (index, seed, model, key, log_prob); lattice,
atomic_numbers, frac_coords of the relaxed primitive cell, and the same with `generated_` before the name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from crystalforge.common.files import atomic_directory
from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.scoring import formula
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.ranking.ranking import best_first
from crystalforge.evaluation.report.cif import SYMPREC, symmetrised
from crystalforge.evaluation.report.figures import spacegroup_symbol
from crystalforge.evaluation.validity import reduced_composition
from crystalforge.screening.candidates import Candidate, relaxed_crystal
from crystalforge.screening.config import ScreenConfig
from crystalforge.screening.known import nearest
from crystalforge.screening.shaking import SYMPREC as LOOSE

FLAGS = pa.list_(pa.struct([("name", pa.string()), ("level", pa.string()), ("text", pa.string())]))


def ranked(candidates: Sequence[Candidate], config: ScreenConfig) -> list[Candidate]:
    """The best `config.top`, best first; equal ones in the order in which they were drawn."""
    ordered = sorted(candidates, key=lambda candidate: candidate.index)
    order = best_first([candidate.standing(config) for candidate in ordered], config.limit)
    return [ordered[position] for position in order[: config.top]]


def conventional(one: Candidate) -> tuple[int, Crystal, str]:
    """Space-group number, conventional cell and CIF text of a candidate as it is listed."""
    return symmetrised(relaxed_crystal(one), LOOSE if one.fell() else SYMPREC)


def confirmed_by(candidate: Candidate, config: ScreenConfig) -> list[str]:
    """The judges that took no part and find it below the limit as well."""
    energies = candidate.energies(config.confirm_names)
    return [name for name, energy in energies.items() if energy <= config.limit]


def shortlist(
    best: Sequence[Candidate], config: ScreenConfig, reference: Reference, lineage: Mapping[str, Any]
) -> pa.Table:
    """One row a crystal, see above."""
    crystals = [crystal for one in best if (crystal := one.relaxed) is not None]
    assert len(crystals) == len(best), "only relaxed crystals are ranked"
    relatives = nearest(reference, crystals)
    ids = reference.ids
    rows = []
    for rank, (one, crystal, relative) in enumerate(zip(best, crystals, relatives, strict=True), start=1):
        group = conventional(one)[0]
        standing = one.standing(config)
        row: dict[str, Any] = {
            "rank": rank,
            "fulfils": one.fulfils(config),
            "formula": formula(dict(reduced_composition(crystal))),
            "spacegroup": group,
            "symbol": spacegroup_symbol(group),
            "drawn_spacegroup": one.spacegroup,
            "n_atoms": len(crystal),
        }
        for name in [*config.judge_names, *config.confirm_names]:
            for when, said in (("", one.after), ("_before", one.before)):
                for what in ("e_above_hull", "energy_per_atom"):
                    row[f"{name}_{what}{when}"] = said.get(name, {}).get(what)
        row |= {
            "worst": standing.worst,
            "agreement": standing.agreement(config.limit),
            "confirmed_by": confirmed_by(one, config),
            "rmsd": one.rmsd if math.isfinite(one.rmsd) else None,
            "volume_change": one.volume_change,
            "converged": one.converged,
            "steps": one.steps,
            "fall": one.fall,
            "property": one.property,
            "flags": [{"name": f.name, "level": f.level.name.lower(), "text": f.text} for f in one.flags],
            "nearest_id": None if relative is None else ids(_row(relative.row))[0],
            "nearest_formula": None if relative is None else _known_formula(reference, relative.row),
            "nearest_kind": None if relative is None else relative.kind,
            "nearest_distance": None if relative is None else relative.distance,
            "index": one.index,
            "log_prob": one.log_prob,
            **lineage,
            **_cell(crystal, ""),
            **_cell(one.generated, "generated_"),
        }
        rows.append(row)
    table = pa.Table.from_pylist(rows) if rows else pa.table({"rank": pa.array([], pa.int64())})
    if rows:
        place = table.column_names.index("flags")
        table = table.set_column(place, "flags", pa.array([row["flags"] for row in rows], FLAGS))
        strings = pa.array([row["confirmed_by"] for row in rows], pa.list_(pa.string()))
        table = table.set_column(table.column_names.index("confirmed_by"), "confirmed_by", strings)
    return table


def write_cifs(folder: Path, best: Sequence[Candidate]) -> None:
    """One CIF a crystal, in the order of the list; the folder appears whole."""
    with atomic_directory(folder) as temporary:
        for rank, one in enumerate(best, start=1):
            assert one.relaxed is not None
            group, _, text = conventional(one)
            name = formula(dict(reduced_composition(one.relaxed)))
            (temporary / f"{rank:03d}-{name}-{group}.cif").write_text(text)


def _cell(crystal: Crystal, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}lattice": crystal.lattice.ravel().tolist(),
        f"{prefix}atomic_numbers": crystal.numbers.tolist(),
        f"{prefix}frac_coords": crystal.frac.ravel().tolist(),
    }


def _row(row: int) -> Any:
    import numpy as np

    return np.array([row], dtype=np.int64)


def _known_formula(reference: Reference, row: int) -> str:
    counts = reference.counts(_row(row))[0]
    composition = {z: int(n) for z, n in enumerate(counts) if n}
    return formula(composition)
