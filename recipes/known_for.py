"""The Materials Project's crystals of those formulas that were drawn: all that novelty asks of, in seconds to ingest.

    python recipes/known_for.py TABLES work/mp/known.parquet work/draw/*

TABLES as for `prepare_mp.py` (mp20 and mp_le20, all rows: held-back ones, and those of GNoME's time, are known crystals
too). A crystal is compared with known ones of its own reduced formula alone, and relaxing leaves the formula as it is;
so each answer is that of the whole tables. The nearest relative is not: it may have another formula.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from own_hull import numbers_of
from prepare_mp import flat, write
from union import reduced_formula


def main() -> None:
    """Read the arguments, write the file, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="directory of the tables")
    parser.add_argument("out", type=Path, help="file for the result")
    parser.add_argument("drawn", type=Path, nargs="+", help="outputs of `crystalforge sample`, or parquet files")
    arguments = parser.parse_args()
    formulas = {reduced_formula(row) for row in numbers_of(arguments.drawn) if len(row)}
    columns = ["material_id", "lattice", "atomic_numbers", "frac_coords"]
    known = pd.concat(
        [pd.read_parquet(arguments.tables / name / f"{name}.parquet", columns=columns) for name in ("mp20", "mp_le20")]
    )
    known = known.drop_duplicates("material_id")
    chosen = known[known.atomic_numbers.map(reduced_formula).isin(formulas)]
    rows = pd.DataFrame(
        {
            "id": chosen.material_id,
            "lattice": chosen.lattice.map(flat),
            "atomic_numbers": chosen.atomic_numbers,
            "frac_coords": chosen.frac_coords.map(flat),
        }
    )
    write(rows, arguments.out)
    print(json.dumps({"known crystals": len(known), "formulas drawn": len(formulas), "of these formulas": len(rows)}))


if __name__ == "__main__":
    main()
