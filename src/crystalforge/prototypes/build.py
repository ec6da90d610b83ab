"""Build the embedded data set: structure types, decorated by substitution, labelled by CHGNet.

    python -m crystalforge.prototypes.build --seed 0 --out src/crystalforge/data/prototypes.parquet

For each structure type of the AFLOW library (<= 20 atoms): its original decoration and charge-balanced substitutions
(`data/substitution.py`), started at the volume of the data-lattice scheme (Chu et al., ACS Omega 3, 2018; as in
pymatgen), scaled to the volume that CHGNet prefers, labelled with CHGNet's energy. Elements and competing binary phases
are added as reference rows. Formation energies and distances to the hull refer to this very set.

What is not done, and why: atomic positions and cell shapes are not relaxed (ten times the cost; crystals
lie near, not at, their minima), and beyond these phases the hull knows simple binaries only (so distances to it are
lower bounds of those to a complete one).

A structure type is computed without regard to the others, given the element references, and its results are kept
under `<out>.parts/` until the end: an interrupted build continues, and one type can be rebuilt alone in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalforge.common.files import atomic_file, write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import tokenize_many
from crystalforge.data.config import SPLITS, SplitConfig
from crystalforge.data.fingerprint import assign_splits, fingerprints, select
from crystalforge.data.sources.tables import REFERENCE
from crystalforge.data.substitution import Prototype, decorations, prototypes
from crystalforge.potentials.base import Potential
from crystalforge.prototypes.elements import element_references
from crystalforge.prototypes.hull import COMMON_BINARIES, competing_phases
from crystalforge.prototypes.volume import at_best_volume, at_predicted_volume
from crystalforge.thermo.entries import Entries
from crystalforge.thermo.hull import HullStore

if TYPE_CHECKING:
    import pyarrow as pa

DECORATIONS = {1: 8, 2: 32, 3: 100, 4: 100, 5: 100}  # per structure type, by its number of elements ...
FULL_QUOTA_ATOMS = 8  # ... and fewer in proportion where the cell has more atoms than this: small cells are preferred
MAX_FORMATION_ENERGY = 0.3  # eV/atom at the preferred volume; what lies higher cannot be near the hull
MAX_E_ABOVE_HULL = 0.3  # eV/atom, of substitutions
MAX_E_ABOVE_HULL_ORIGINAL = 1.0  # eV/atom; the library has high-pressure phases, and a few with colliding atoms
ON_HULL = 1e-6  # eV/atom; energies are rounded to this


@dataclass(frozen=True)
class Row:
    """One crystal of the data set; energies in eV/atom, lattice in Å, None where not yet known."""

    id: str
    prototype: str
    kind: str  # original, substitution, element or competing
    lattice: list[float]
    atomic_numbers: list[int]
    frac_coords: list[float]
    energy_per_atom: float
    spacegroup: int | None = None
    formation_energy_per_atom: float | None = None
    e_above_hull: float | None = None
    split: str | None = None

    @classmethod
    def of(cls, name: str, prototype: str, kind: str, crystal: Crystal, energy: float) -> Row:
        """A row from a crystal and its energy per atom."""
        return cls(
            name,
            prototype,
            kind,
            crystal.lattice.ravel().tolist(),
            crystal.numbers.tolist(),
            crystal.frac.ravel().tolist(),
            round(energy, 6),
        )

    @property
    def crystal(self) -> Crystal:
        """The structure."""
        return Crystal.of(self.lattice, self.atomic_numbers, self.frac_coords)


def build(
    out: Path, *, seed: int = 0, potential: Potential | None = None, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Build the data set (or only the structure types in `labels`) and write `out`; returns its counts."""
    potential = potential or _potential()
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    elements = _kept(parts / "elements.json", lambda: element_rows(potential))
    chosen = [prototype for prototype in prototypes() if not labels or prototype.label in labels]
    rows: list[Row] = []
    with Progress("prototypes", len(chosen), unit="type") as progress:
        for prototype in chosen:
            file = parts / f"{prototype.label}.json"
            rows += _kept(file, lambda one=prototype: prototype_rows(one, elements, potential, seed=seed))
            progress.update(note=f"{len(rows)} crystals")
    competing = _competing(elements, potential, parts) if not labels else []
    final = assemble(rows, elements, competing)
    write_parquet(final, out, seed=seed, potential=potential)
    return summary(final)


def element_rows(potential: Potential) -> list[Row]:
    """The reference rows: each element's lowest structure."""
    from pymatgen.core import Element

    return [
        Row.of(f"element-{Element.from_Z(z).symbol}", label, "element", crystal, energy)
        for z, (label, crystal, energy) in element_references(potential).items()
    ]


def prototype_rows(
    prototype: Prototype, elements: Sequence[Row], potential: Potential, *, seed: int, limit: int | None = None
) -> list[Row]:
    """All decorations of one structure type with a formation energy below the bound; the original one always.

    limit: make the first so many substitutions only (each is computed without regard to the others).
    """
    original = tuple(prototype.elements)
    count = round(DECORATIONS[len(original)] * min(1.0, FULL_QUOTA_ATOMS / len(prototype.structure)))
    symbols = [original, *decorations(prototype, min(count, limit or count), seed=seed)]
    references = {row.atomic_numbers[0]: row.energy_per_atom for row in elements}
    trial = [at_predicted_volume(prototype, names) for names in symbols]
    kept = [index for index, crystal in enumerate(trial) if set(crystal.numbers.tolist()) <= set(references)]
    crystals, energy = at_best_volume([trial[index] for index in kept], potential)
    rows = []
    for index, crystal, value in zip(kept, crystals, energy.tolist(), strict=True):
        formation = value - float(np.mean([references[z] for z in crystal.numbers.tolist()]))
        if index == 0 or formation <= MAX_FORMATION_ENERGY:
            kind = "original" if index == 0 else "substitution"
            rows.append(Row.of(prototype.name(symbols[index]), prototype.label, kind, crystal, value))
    return [row for row in rows if np.isfinite(row.energy_per_atom)]


def _competing(elements: Sequence[Row], potential: Potential, parts: Path) -> list[Row]:
    """Simple binaries of all pairs of elements, one part per structure type."""
    references = {row.atomic_numbers[0]: row.energy_per_atom for row in elements}
    known = {prototype.label: prototype for prototype in prototypes()}
    rows: list[Row] = []
    with Progress("hull", len(COMMON_BINARIES), unit="type") as progress:
        for label in COMMON_BINARIES:
            rows += _kept(
                parts / f"competing-{label}.json",
                lambda label=label: [
                    Row.of(name, label, "competing", crystal, energy)
                    for name, crystal, energy in competing_phases(known[label], references, potential)
                ],
            )
            progress.update(note=f"{len(rows)} phases")
    return rows


def assemble(rows: Sequence[Row], elements: Sequence[Row], competing: Sequence[Row] = ()) -> list[Row]:
    """Distances to the common hull, the bounds on them, one of each structure, splits; reference rows come last."""
    labelled = _on_common_hull([*rows, *elements, *competing])
    references = [
        replace(row, split=REFERENCE)
        for row in labelled[len(rows) :]
        if row.kind == "element" or _distance(row) <= ON_HULL
    ]
    bound = {"original": MAX_E_ABOVE_HULL_ORIGINAL, "substitution": MAX_E_ABOVE_HULL}
    bounded = [row for row in labelled[: len(rows)] if _distance(row) <= bound[row.kind]]
    # The lowest in energy stands for all that match it; phases on the hull are thereby never lost.
    bounded.sort(key=lambda row: (row.energy_per_atom, row.id))
    found = tokenize_many(row.crystal for row in bounded)
    tokens, candidates = found.tokens, [bounded[index] for index in found.index]
    fingerprint = fingerprints(tokens)
    keep = select(lambda index: tokens[index], fingerprint, np.zeros(len(tokens), np.int8), deduplicate=True)
    split = assign_splits(fingerprint, SplitConfig())
    unique = [
        replace(candidates[index], spacegroup=int(tokens.spacegroup[index]), split=SPLITS[split[index]])
        for index in np.flatnonzero(keep)
    ]
    return sorted(unique, key=lambda row: row.id) + references


def _on_common_hull(everything: Sequence[Row]) -> list[Row]:
    """Rows with formation energy and distance to the hull of all of them together."""
    compositions = [dict(Counter(row.atomic_numbers)) for row in everything]
    energy = np.array([row.energy_per_atom for row in everything])
    hull = HullStore.from_entries(Entries.of([{z: float(n) for z, n in row.items()} for row in compositions], energy))
    above = hull.e_above_hull_many([row.atomic_numbers for row in everything], energy).e_above_hull
    pure: dict[int, float] = {}
    for composition, value in zip(compositions, energy.tolist(), strict=True):
        if len(composition) == 1:
            z = next(iter(composition))
            pure[z] = min(value, pure.get(z, np.inf))
    labelled = []
    for row, distance in zip(everything, above.tolist(), strict=True):
        formation = row.energy_per_atom - float(np.mean([pure[z] for z in row.atomic_numbers]))
        labelled.append(
            replace(row, formation_energy_per_atom=round(formation, 6), e_above_hull=round(max(distance, 0.0), 6))
        )
    return labelled


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What is in the set: counts, and the distribution of distances to the hull."""
    crystals = [row for row in rows if row.split != REFERENCE]
    distance = np.array([_distance(row) for row in crystals])
    return {
        "crystals": len(crystals),
        "elements_referenced": sum(row.kind == "element" for row in rows),
        "competing_phases": sum(row.kind == "competing" for row in rows),
        "original": sum(row.kind == "original" for row in crystals),
        "prototypes": len({row.prototype for row in crystals}),
        "spacegroups": len({row.spacegroup for row in crystals}),
        "elements": len({z for row in crystals for z in row.atomic_numbers}),
        "splits": {name: sum(row.split == name for row in crystals) for name in ("train", "val", "test")},
        "e_above_hull_mean": round(float(distance.mean()), 4),
        "e_above_hull_quartiles": np.quantile(distance, (0.25, 0.5, 0.75)).round(4).tolist(),
        "on_hull": int((distance < 1e-6).sum()),
        "below_0.1": int((distance < 0.1).sum()),
    }


def write_parquet(rows: Sequence[Row], out: Path, *, seed: int, potential: Potential) -> None:
    """One row group, zstd; the recipe goes into the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    recipe = {"seed": seed, "potential": potential.name, "potential_digest": potential.digest, "pymatgen": _pymatgen()}
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
    table = table.replace_schema_metadata({"crystalforge": json.dumps(recipe | {"summary": summary(rows)})})
    with atomic_file(out) as temporary:
        parquet.write_table(table, temporary, compression="zstd", compression_level=19)


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    return pa.schema(
        [
            ("id", text),
            ("prototype", text),
            ("kind", text),
            ("lattice", pa.list_(real)),
            ("atomic_numbers", pa.list_(pa.int32())),
            ("frac_coords", pa.list_(real)),
            ("energy_per_atom", real),
            ("spacegroup", pa.int32()),
            ("formation_energy_per_atom", real),
            ("e_above_hull", real),
            ("split", text),
        ]
    )


def _distance(row: Row) -> float:
    assert row.e_above_hull is not None
    return row.e_above_hull


def _potential() -> Potential:
    import torch

    from crystalforge.potentials.config import CHGNetConfig
    from crystalforge.potentials.load import load

    torch.set_num_threads(1)  # many small products: a second thread makes them slower
    return load(CHGNetConfig())


def _pymatgen() -> str:
    from importlib.metadata import version

    return version("pymatgen")


def _kept(file: Path, make: Any) -> list[Row]:
    """The rows in `file`, made and written first when it is not there."""
    if not file.exists():
        write_json(file, [asdict(row) for row in make()])
    return [Row(**values) for values in json.loads(file.read_text())]


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the substitutions drawn")
    parser.add_argument("--only", nargs="*", default=(), metavar="LABEL", help="these structure types only")
    arguments = parser.parse_args()
    print(json.dumps(build(arguments.out, seed=arguments.seed, labels=arguments.only), indent=2))


if __name__ == "__main__":
    main()
