"""Materials Project tables into what the MP-20 recipes read: crystals, and one hull for each scale of energies.

    python recipes/prepare_mp.py TABLES work/mp

TABLES is a directory with

    mp20/mp20.parquet                          MP-20's rows: structure, formation energy, split, split_inferred
    hull/mp_entries_formation_energy.parquet   formula and formation energy of known phases, present scale
    mp_labels_by_id/labels.parquet             ef_mp2018: formation energies of the 2018 release, by material id
    mp_le20/mp_le20.parquet                    formula by material id, for phases that the hull's table lacks
    elemental_refs/2023-02-07-mp-elemental-reference-entries.json.gz

and work/mp then holds

    mp20.parquet         crystals for `data.source: {kind: parquet}`, split train, val or test
    hull_mp2018.parquet  formation energies on the scale of the MEGNet and M3GNet models of 2018
    hull_mp2020.parquet  total energies on the MP2020-corrected scale, which is CHGNet's

Why two hulls: the same compound's formation energy differs by 46 meV/atom between the two releases in the mean,
because the corrections of oxides, halides and other anions were fitted anew. A distance to the hull is that small
itself. Phases that have no label of 2018 get the present one, shifted by what elements and anion explain of the
difference; the shift is fitted on the phases that have both, a fifth of them held back, and the error on these is
printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from pymatgen.core import Composition

from crystalforge.common.files import atomic_file
from crystalforge.crystal import Crystal
from crystalforge.thermo.entries import parse_formula

ANIONS = (8, 9)  # the old scheme shifts metals in oxides and in fluorides, each by a value of its own
ELEMENTS = 119
RIDGE = 0.1  # rows: elements that occur in a handful of phases keep a small shift
OUTLIER = 0.3  # eV/atom: larger differences are other calculations, not other corrections


def main() -> None:
    """Read the arguments, write the three files, print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="directory of the tables")
    parser.add_argument("out", type=Path, help="directory for the results")
    arguments = parser.parse_args()
    tables, out = arguments.tables, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows = crystals(pd.read_parquet(tables / "mp20" / "mp20.parquet"))
    write(rows, out / "mp20.parquet")
    phases = pd.read_parquet(tables / "hull" / "mp_entries_formation_energy.parquet")
    labels = pd.read_parquet(tables / "mp_labels_by_id" / "labels.parquet", columns=["material_id", "ef_mp2018"])
    more = pd.read_parquet(tables / "mp_le20" / "mp_le20.parquet", columns=["material_id", "formula"])
    old, report = on_scale_of_2018(phases, labels, more)
    write(old, out / "hull_mp2018.parquet")
    new = on_scale_of_2020(phases, elements(next((tables / "elemental_refs").glob("2023*mp-elemental*.json.gz"))))
    write(new, out / "hull_mp2020.parquet")
    splits = {str(name): int(count) for name, count in rows.split.value_counts().items()}
    print(json.dumps({"crystals": splits, "hull_mp2018": report, "hull_mp2020": {"phases": len(new)}}, indent=2))


def crystals(table: pd.DataFrame) -> pd.DataFrame:
    """MP-20's rows whose split is certain, one array per column as the parquet source wants them.

    Rows that are in the validation or the test split, but not certainly in which, are left out.
    """
    split = table.split.where(table.split.isin(["val", "test"]))
    split[table.split_inferred == "train"] = "train"
    result = pd.DataFrame(
        {
            "id": table.material_id,
            "lattice": table.lattice.map(flat),
            "atomic_numbers": table.atomic_numbers,
            "frac_coords": table.frac_coords.map(flat),
            "formation_energy_per_atom": table.formation_energy_per_atom,
            "e_above_hull": table.e_above_hull,
            "split": split,
        }
    )
    return result.loc[split.notna()]


def on_scale_of_2018(
    phases: pd.DataFrame, labels: pd.DataFrame, more: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Phases with formation energies of the 2018 release: their own where known, else the shifted present one."""
    known = labels[labels.ef_mp2018.notna()]
    joined = phases.merge(known, on="material_id", how="left")
    both = joined[joined.ef_mp2018.notna()]
    features = correction_features(both.formula)
    difference = (both.ef_mp2018 - both.formation_energy_per_atom).to_numpy()
    held = np.random.default_rng(0).random(len(both)) < 0.2
    error = difference[held] - features[held] @ fitted(features[~held], difference[~held])
    present = joined.ef_mp2018.isna()
    shift = correction_features(joined[present].formula) @ fitted(features, difference)
    extra = known.merge(more[~more.material_id.isin(phases.material_id)], on="material_id")
    table = pd.concat(
        [
            both.loc[:, ["material_id", "formula"]].assign(formation_energy_per_atom=both.ef_mp2018, source="label"),
            extra.loc[:, ["material_id", "formula"]].assign(formation_energy_per_atom=extra.ef_mp2018, source="label"),
            joined.loc[present, ["material_id", "formula"]].assign(
                formation_energy_per_atom=joined[present].formation_energy_per_atom + shift, source="shifted"
            ),
        ],
        ignore_index=True,
    )
    return table, {
        "phases": len(table),
        "shifted": int(present.sum()),
        "mean_abs_difference": round(float(np.abs(difference[held]).mean()), 4),
        "mean_abs_error_after_shift": round(float(np.abs(error).mean()), 4),
        "median_abs_error_after_shift": round(float(np.median(np.abs(error))), 4),
    }


def on_scale_of_2020(phases: pd.DataFrame, reference: dict[int, float]) -> pd.DataFrame:
    """Total energies: formation energy plus the elements'. Phases of elements without a reference are left out."""
    energy = []
    for formula, formation in zip(phases.formula, phases.formation_energy_per_atom, strict=True):
        amounts = parse_formula(formula)
        total = sum(amounts.values())
        energy.append(formation + sum(n / total * reference.get(z, np.nan) for z, n in amounts.items()))
    table = phases[["material_id", "formula"]].assign(energy_per_atom=energy)
    return table.loc[table.energy_per_atom.notna()]


def correction_features(formulas: pd.Series) -> Float64[np.ndarray, "N 357"]:
    """Atomic fractions; the same again for oxides; and for fluorides: the old corrections are linear in these."""
    result = np.zeros((len(formulas), ELEMENTS * (1 + len(ANIONS))))
    for row, formula in enumerate(formulas):
        amounts = parse_formula(formula)
        total = sum(amounts.values())
        anion = next((k for k, z in enumerate(ANIONS) if z in amounts), None)
        for z, amount in amounts.items():
            result[row, z] = amount / total
            if anion is not None:
                result[row, ELEMENTS * (1 + anion) + z] = amount / total
    return result


def fitted(features: Float64[np.ndarray, "N F"], values: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " F"]:
    """Ridge regression, three times, each without the last one's outliers."""
    weights = np.zeros(features.shape[1])
    keep = np.ones(len(values), dtype=bool)
    for _ in range(3):
        a, y = features[keep], values[keep]
        weights = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1]), a.T @ y)
        keep = np.abs(values - features @ weights) < OUTLIER
    return weights


def elements(file: Path) -> dict[int, float]:
    """Energy per atom of each element's ground state, eV, from the Materials Project's reference entries."""
    found = {}
    for entry in json.loads(gzip.decompress(file.read_bytes())).values():
        composition = Composition(entry["composition"])
        found[composition.elements[0].Z] = (entry["energy"] + entry["correction"]) / composition.num_atoms
    return found


def write(table: pd.DataFrame, path: Path) -> None:
    """One parquet file, whole or absent."""
    with atomic_file(path) as temporary:
        table.to_parquet(temporary)


def crystal_of(row: Mapping[Any, Any]) -> Crystal:
    """The crystal of a row of the tables."""
    return Crystal.of(flat(row["lattice"]), row["atomic_numbers"], flat(row["frac_coords"]))


def flat(rows: Iterable[Any]) -> list[float]:
    """Rows of three numbers, or one row of all, as one list."""
    return np.concatenate([np.asarray(row, dtype=float).ravel() for row in rows]).tolist()


if __name__ == "__main__":
    main()
