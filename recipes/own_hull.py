"""A hull on a potential's own energies: its systematic errors then cancel between a crystal and what it competes with.

    python recipes/own_hull.py TABLES work/mp

Reads work/mp/hull_mp2020.parquet (from prepare_mp.py) and the structures in TABLES/mp_le20/mp_le20.parquet, and writes
work/mp/hull_chgnet.parquet: the phases on the hull, with CHGNet's energy where the structure is at hand, and with the
Materials Project's own, which is on CHGNet's scale, for the others (more than 20 atoms). An interrupted call goes on.
With `--judge 7net-0` the same for SevenNet-0: its energies, PBE(+U), are brought to the same scale by the Materials
Project's corrections of 2020, as a reward with `hull_scale: mp2020` does with those of a crystal.

    python recipes/own_hull.py TABLES work/mp --systems-of work/quality

asks only for the phases of chemical systems that occur among the crystals of evaluations or of parquet files, a
fraction of them, and writes work/mp/hull_chgnet_some.parquet, which has these systems whole and holds for these
crystals alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64
from prepare_mp import crystal_of

from crystalforge.common.files import atomic_file
from crystalforge.potentials import Potential, load
from crystalforge.potentials.config import CHGNetConfig, PotentialConfig, SevenNetConfig
from crystalforge.rewards import own_hull
from crystalforge.thermo import HullStore
from crystalforge.thermo.corrections import mp2020_corrections
from crystalforge.thermo.entries import parse_formula

TABLE = "crystals.parquet"  # of an evaluation
ON_HULL = 1e-6  # eV/atom
JUDGES: dict[str, PotentialConfig] = {
    "chgnet": CHGNetConfig(),
    "7net-0": SevenNetConfig(),
    "7net-l3i5": SevenNetConfig(model="7net-l3i5"),
}


def main() -> None:
    """Read the arguments, write the hull, print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="directory of the tables")
    parser.add_argument("out", type=Path, help="directory with the results of prepare_mp.py, and for this one")
    parser.add_argument("--judge", choices=sorted(JUDGES), default="chgnet", help="whose energies")
    parser.add_argument(
        "--systems-of",
        type=Path,
        nargs="*",
        default=[],
        help="outputs of `crystalforge evaluate` or `sample`, or parquet files: their systems only",
    )
    arguments = parser.parse_args()
    source, judge = arguments.out / "hull_mp2020.parquet", arguments.judge
    table, name = pd.read_parquet(source), f"hull_{judge}"
    if arguments.systems_of:
        table, name = within(table, numbers_of(arguments.systems_of)), f"hull_{judge}_some"
    phases = on_hull(table, HullStore.open(source))
    columns = ["material_id", "lattice", "atomic_numbers", "frac_coords"]
    known = pd.read_parquet(arguments.tables / "mp_le20" / "mp_le20.parquet", columns=columns)
    potential = load(JUDGES[judge])
    covered = known.atomic_numbers.map(lambda row: potential.elements.issuperset(map(int, row)))
    known = known.loc[known.material_id.isin(phases.material_id) & covered].sort_values("material_id")
    own = energies(potential, known, arguments.out / f"hull_{judge}.parts")
    joined = phases.merge(pd.DataFrame({"material_id": known.material_id, "own": own}), on="material_id", how="left")
    difference = (joined.own - joined.energy_per_atom).dropna()
    joined["source"] = np.where(joined.own.notna(), judge, "mp2020")
    joined["energy_per_atom"] = joined.own.fillna(joined.energy_per_atom)
    with atomic_file(arguments.out / f"{name}.parquet") as path:
        joined.drop(columns="own").to_parquet(path)
    report = {
        "phases": len(joined),
        "with the judge's energy": int(joined.source.eq(judge).sum()),
        "mean difference": round(float(difference.mean()), 4),
        "mean absolute difference": round(float(difference.abs().mean()), 4),
    }
    print(json.dumps(report, indent=2))


def numbers_of(places: Sequence[Path]) -> pd.Series:
    """Atomic numbers of the crystals of evaluations, of directories of parquet files, and of such files."""
    files: list[Path] = []
    for place in places:
        if (place / TABLE).is_file():
            files.append(place / TABLE)
        else:
            files += sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    return pd.concat([pd.read_parquet(file, columns=["atomic_numbers"]) for file in files]).atomic_numbers


def within(phases: pd.DataFrame, numbers: pd.Series) -> pd.DataFrame:
    """The phases whose elements all occur together in one of the crystals, given by their atomic numbers."""
    systems = {frozenset(map(int, row)) for row in numbers if len(row)}
    parts = {frozenset(part) for full in systems for n in range(1, len(full) + 1) for part in combinations(full, n)}
    return phases.loc[[frozenset(parse_formula(formula)) in parts for formula in phases.formula]]


def on_hull(phases: pd.DataFrame, hull: HullStore) -> pd.DataFrame:
    """The phases that lie on their hull."""
    atoms = [np.repeat(list(amounts := parse_formula(f)), [round(n) for n in amounts.values()]) for f in phases.formula]
    distance = hull.e_above_hull_many(atoms, phases.energy_per_atom.to_numpy()).e_above_hull
    return phases.loc[distance < ON_HULL]


def energies(potential: Potential, rows: pd.DataFrame, parts: Path) -> Float64[np.ndarray, " N"]:
    """Energy per atom of each structure, eV, on the scale mp2020; NaN where the potential has no answer. `parts`: what
    was done before, by any call.
    """
    known: dict[str, float] = {}
    for file in sorted(parts.glob("*.parquet")):
        part = pd.read_parquet(file)
        known |= dict(zip(part.material_id, part.energy_per_atom, strict=True))
    missing = rows.loc[~rows.material_id.isin(list(known))]
    if len(missing):
        named = [(row["material_id"], crystal_of(row)) for row in missing.to_dict("records")]
        crystals, key = [crystal for _, crystal in named], own_hull.key(potential, named)
        values = own_hull.energies(potential, crystals, parts / key, press=False)
        if potential.scale == "pbe":
            values = values + mp2020_corrections(crystals)
        part = pd.DataFrame({"material_id": missing.material_id, "energy_per_atom": values})
        with atomic_file(parts / f"{key}.parquet") as temporary:
            part.to_parquet(temporary)
        known |= dict(zip(part.material_id, part.energy_per_atom, strict=True))
    return rows.material_id.map(known).to_numpy(dtype=np.float64)


if __name__ == "__main__":
    main()
