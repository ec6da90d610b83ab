"""MP-20 and what else the Materials Project has, without anything that its validation and test splits hold.

    python recipes/union.py TABLES work/mp

TABLES as for `prepare_mp.py` (mp20 and mp_le20); writes work/mp/mp.parquet: MP-20's rows with their splits, and as
further rows of the training split those of mp_le20 (at most 20 atoms) that
- come from a release before the crystals of GNoME, whose licence (CC-BY-ND) allows no derived work: ids below
  2,000,000; the highest id with a label of the release of 2021 is 1,977,763;
- have another reduced formula than every row of MP-20 that is in the validation or test split, or may be: two
  structures that match have one formula, so no match of a held-back structure is left, whatever its id; `ingest`
  compares what is left by fingerprint and StructureMatcher once more.
Prints how many rows went for which reason.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_mp import crystals, flat, write

FIRST_OF_GNOME = 2_000_000


def main() -> None:
    """Read the arguments, write the file, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="directory of the tables")
    parser.add_argument("out", type=Path, help="directory for the result")
    arguments = parser.parse_args()
    mp20 = pd.read_parquet(arguments.tables / "mp20" / "mp20.parquet")
    base = crystals(mp20)
    more = pd.read_parquet(arguments.tables / "mp_le20" / "mp_le20.parquet")
    training = set(base.id[base.split == "train"])
    held_back = mp20[~mp20.material_id.isin(training)]
    formulas = set(held_back.atomic_numbers.map(reduced_formula))
    licensed = more.material_id.str.extract(r"-(\d+)$")[0].astype(int) < FIRST_OF_GNOME
    apart = ~more.atomic_numbers.map(reduced_formula).isin(formulas) & ~more.material_id.isin(held_back.material_id)
    new = ~more.material_id.isin(training)
    chosen = more[licensed & apart & new]
    hull = chosen.e_above_hull_mp2018.fillna(chosen.e_above_hull_est)
    rows = pd.DataFrame(
        {
            "id": chosen.material_id,
            "lattice": chosen.lattice.map(flat),
            "atomic_numbers": chosen.atomic_numbers,
            "frac_coords": chosen.frac_coords.map(flat),
            "formation_energy_per_atom": chosen.ef_mp2018.astype(float),
            "e_above_hull": hull.astype(float),
            "split": "train",
        }
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(pd.concat([base, rows], ignore_index=True), arguments.out / "mp.parquet")
    report = {
        "rows of mp_le20": len(more),
        "of GNoME's time or later": int((~licensed).sum()),
        "of the rest, with the formula of a held-back crystal": int((licensed & ~apart).sum()),
        "of the rest, in MP-20's training split": int((licensed & apart & ~new).sum()),
        "added": len(rows),
        "of these with a known distance to the hull": int(hull.notna().sum()),
        "MP-20's training split": len(training),
    }
    print(json.dumps(report, indent=2))


def reduced_formula(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Sorted pairs of atomic number and count, counts without a common divisor."""
    elements, counts = np.unique(np.asarray(numbers), return_counts=True)
    return tuple(zip(elements.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True))


if __name__ == "__main__":
    main()
