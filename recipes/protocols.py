"""The figures of `recipes/protocols.yaml` as Markdown: each model by each protocol, by all judges and by each alone.

    python recipes/protocols.py work/protocols [work/others]

Reads work/protocols/crystals.parquet, and those of further evaluations, which may have hulls of other systems. Shares
are of all crystals drawn, in %, brackets 95 %. By one judge alone S.U.N. is asked of the groups that were found for the
whole set: a group counts when one of its members is stable by this judge and new.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from crystalforge.evaluation.evaluate import TABLE, read_table
from crystalforge.evaluation.judging.stability import energy_by
from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.evaluation.metrics.statistics import Estimate, distinct_interval, share

LEMAT, DRAWN, MATTERGEN = "lemat-genbench", "lemat-genbench-as-drawn", "mattergen"
JUDGES = {"CHGNet": "", "SevenNet-0": "held_out_"}
STABLE = 0.1  # eV/atom: mattergen's limit


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "evaluations", type=Path, nargs="+", help="outputs of `crystalforge evaluate -c recipes/protocols.yaml`"
    )
    columns: dict[str, dict[str, str]] = {}
    for evaluation in parser.parse_args().evaluations:
        whole = read_table(evaluation / TABLE)
        headline = (whole.schema.metadata or {})[b"headline"].decode()
        columns |= {label: figures(part, headline) for label, part in by_label(whole).items()}
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")


def figures(table: pa.Table, headline: str) -> dict[str, str]:
    """Lines of one model, in the order of the table."""

    def column(name: str, protocol: str) -> Bool[np.ndarray, " n"]:
        return table.column(name if protocol == headline else f"{name}:{protocol}").to_numpy()

    valid = table.column("valid").to_numpy()
    found = {
        "crystals": str(len(table)),
        "valid": percent(share(valid)),
        "unique, relaxed": percent(distinct(column("group", LEMAT), column("group", LEMAT) >= 0)),
        "novel, relaxed": percent(share(column("novel", LEMAT))),
        "valid structure, relaxed": percent(share(table.column("structure_valid").to_numpy())),
        "relaxation converged": percent(share(table.column("relaxed_converged").to_numpy())),
    }
    for protocol, what in ((LEMAT, "relaxed"), (DRAWN, "as drawn")):
        for kind, name in (("sun", "S.U.N."), ("msun", "M.S.U.N.")):
            found[f"`{LEMAT}`, {what}: {name}"] = percent(share(column(kind, protocol)))
    energies = {judge: energy_by(table, f"relaxed_{prefix}") for judge, prefix in JUDGES.items()}
    group, novel = column("group", LEMAT), column("novel", LEMAT) & valid
    for judge, energy in energies.items():
        assert energy is not None, f"{judge} gave no distances to the hull"
        with np.errstate(invalid="ignore"):
            bands = {"S.U.N.": energy <= 0, "M.S.U.N.": (energy > 0) & (energy <= STABLE)}
        for name, band in bands.items():
            found[f"`{LEMAT}`, relaxed, {judge} alone: {name}"] = percent(distinct(group, band & novel))
    group, novel = column("group", MATTERGEN), column("novel", MATTERGEN)
    below = [np.nan_to_num(energy, nan=np.inf) < STABLE for energy in energies.values() if energy is not None]
    for judge, mask in zip(energies, below, strict=True):
        found[f"`{MATTERGEN}`, {judge}: stable"] = percent(share(mask))
        found[f"`{MATTERGEN}`, {judge}: S.U.N."] = percent(distinct(group, mask & novel))
    found[f"`{MATTERGEN}`, both: S.U.N."] = percent(distinct(group, np.logical_and.reduce(below) & novel))
    moved = table.column("relaxed_rmsd").to_numpy()
    found["median displacement by relaxing, Å"] = f"{np.nanmedian(moved):.2f}"
    return found


def distinct(groups: np.ndarray, chosen: Bool[np.ndarray, " n"]) -> Estimate:
    """Share of different crystals among the chosen, of all; the conservative interval."""
    kept: Sequence[int] = groups[chosen & (groups >= 0)].tolist()
    return distinct_interval(kept, len(groups))


def percent(estimate: Estimate) -> str:
    """Value and interval in %."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


if __name__ == "__main__":
    main()
