"""A hull of a potential's own energies: its systematic errors then cancel between a crystal and what it competes with.

Two functionals, or two networks, do not agree on an energy per atom, so the hull of one is of no use to the other. Here
the energies of given reference phases are computed by the very potential that judges. The embedded phases' energies by
the potentials whose weights lie in a wheel come with the package; those of any other are computed once and kept.

An element whose atoms stand farther apart than a potential sees (Rb and Cs at 5.1 and 5.5 Å, where SevenNet sees 5) is
pressed together until it does; without that none of its compounds would have a hull. The two elements stand then 0.06
eV/atom higher in SevenNet-0 than what the labels of their compounds imply.

What is not done: the phases keep the structures that they were given in. The embedded ones stand at the volume that
CHGNet prefers, their atoms on the prototype's places, so that another potential's hull lies a little high.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Potential
from crystalforge.thermo import HullStore
from crystalforge.thermo.entries import Entries

PIECE = 256  # structures evaluated between two writes
SHIPPED = "own_energies.parquet"
NEAR_HULL = 0.02
"""eV/atom above CHGNet's hull up to which an embedded phase is given to another potential: the two rank close rivals
differently, and what lies higher than this is on nobody's hull."""
METHOD = 2  # of computing a phase; what was kept by an earlier one is not used
PRESSED = np.linspace(0.995, 0.85, 30)
"""Lengths, as parts of the given ones, at which an element without an answer is asked again, the first that answers."""
CACHE_VARIABLE = "CRYSTALFORGE_CACHE"


def own_hull(potential: Potential, *, quiet: bool = False) -> HullStore:
    """The embedded reference phases with `potential`'s own energies, from the package, from the cache, or computed."""
    phases = embedded_phases()
    energy = _shipped(potential, [name for name, _ in phases])
    if energy is None:
        folder = cache_directory() / "own-hull" / key(potential, phases)
        energy = energies(potential, [crystal for _, crystal in phases], folder, quiet=quiet)
    return HullStore.from_entries(_entries(potential, phases, energy), source=f"own:{potential.name}")


def build(potential: Potential, source: Path | None, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Write the reference phases of `source` (none: the embedded ones) with `potential`'s energies to the parquet file
    `out`, which every reward takes as its hull; returns what is in it.

    source: a parquet of structures (lattice, atomic_numbers, frac_coords, and an id), elements among them. An
    interrupted call goes on. Raises InputError for a file without structures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    phases = embedded_phases() if source is None else _phases(source)
    parts = out.with_suffix(".parts") / key(potential, phases)
    energy = energies(potential, [crystal for _, crystal in phases], parts, quiet=quiet)
    known = np.isfinite(energy)
    if not known.any():
        raise InputError(f"{potential.name} has no energy for any phase", source=source or "embedded")
    chosen = [phase for phase, keep in zip(phases, known, strict=True) if keep]
    table = pa.table(
        {
            "id": [name for name, _ in chosen],
            "atomic_numbers": pa.array([crystal.numbers.tolist() for _, crystal in chosen], pa.list_(pa.int32())),
            "energy_per_atom": energy[known],
        }
    )
    made = {"potential": potential.name, "digest": potential.digest, "scale": potential.scale}
    with atomic_file(out) as temporary:
        pq.write_table(table.replace_schema_metadata(made), temporary, compression="zstd")
    lacking = {int(z) for _, crystal in phases for z in crystal.numbers} - {
        int(crystal.numbers[0]) for _, crystal in chosen if len(set(crystal.numbers.tolist())) == 1
    }
    return {
        "phases": len(chosen),
        "without an energy": int((~known).sum()),
        "elements lacking": sorted(lacking),
        **made,
    }


def energies(
    potential: Potential, crystals: Sequence[Crystal], parts: Path, *, press: bool = True, quiet: bool = False
) -> Float64[np.ndarray, " N"]:
    """Energy per atom of each crystal, eV; NaN where the potential has no answer. parts: what was computed before, with
    the same `press`: whether elements whose atoms do not see each other are pressed together until they do.
    """
    found = [np.zeros(0)]
    stream = io.StringIO() if quiet else None
    with Progress("own hull", len(crystals), unit="phases", stream=stream) as progress:
        for first in range(0, len(crystals), PIECE):
            chosen = crystals[first : first + PIECE]
            file = parts / f"{first:08d}.npy"
            if not file.exists():
                values = potential.predict(chosen).energy / np.array([len(crystal) for crystal in chosen])
                for row in np.flatnonzero(~np.isfinite(values)).tolist() if press else []:
                    values[row] = _pressed(potential, chosen[row])
                with atomic_file(file) as temporary, temporary.open("wb") as handle:
                    np.save(handle, values)
            found.append(np.load(file, allow_pickle=False))
            progress.update(len(chosen))
    return np.concatenate(found)


def key(potential: Potential, phases: Sequence[tuple[str, Crystal]]) -> str:
    """Of what `energies` computes of phases: a folder of this name holds no other's."""
    return sha256_json([METHOD, potential.digest, [name for name, _ in phases]])[:16]


def _pressed(potential: Potential, crystal: Crystal) -> float:
    """Energy per atom of an element that is pressed together until its atoms see each other; NaN for anything else."""
    if len(set(crystal.numbers.tolist())) > 1 or not set(crystal.numbers.tolist()) <= potential.elements:
        return float("nan")
    smaller = [Crystal(crystal.lattice * part, crystal.numbers, crystal.frac) for part in PRESSED.tolist()]
    energy = potential.predict(smaller).energy / len(crystal)
    seen = np.flatnonzero(np.isfinite(energy))
    return float(energy[seen[0]]) if len(seen) else float("nan")


def embedded_phases() -> list[tuple[str, Crystal]]:
    """The embedded data set's elements and what lies within NEAR_HULL of its hull, by id."""
    import pyarrow.parquet as pq

    with resources.as_file(resources.files("crystalforge") / "data" / "prototypes.parquet") as file:
        columns = ["id", "kind", "lattice", "atomic_numbers", "frac_coords", "e_above_hull"]
        rows = pq.read_table(file, columns=columns).to_pylist()
    return [
        (row["id"], Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]))
        for row in rows
        if row["kind"] == "element" or row["e_above_hull"] <= NEAR_HULL
    ]


def cache_directory() -> Path:
    """Where what was computed once is kept: CRYSTALFORGE_CACHE, or the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "crystalforge"


def shipped_names() -> list[str]:
    """The potentials whose energies of the embedded phases come with the package."""
    import pyarrow.parquet as pq

    file = resources.files("crystalforge") / "data" / SHIPPED
    if not file.is_file():
        return []
    with resources.as_file(file) as path:
        return [name for name in pq.read_schema(path).names if name != "id"]


def _shipped(potential: Potential, names: Sequence[str]) -> Float64[np.ndarray, " N"] | None:
    """By name: what a name's weights are is held by the golden values, before a potential may judge."""
    import pyarrow.parquet as pq

    if potential.name not in shipped_names():
        return None
    with resources.as_file(resources.files("crystalforge") / "data" / SHIPPED) as path:
        table = pq.read_table(path, columns=["id", potential.name])
    known: Mapping[str, float] = dict(
        zip(table.column("id").to_pylist(), table.column(potential.name).to_pylist(), strict=True)
    )
    if not set(names) <= set(known):  # another set of phases than the package was built with
        return None
    return np.array([np.nan if known[name] is None else known[name] for name in names], dtype=np.float64)


def _entries(potential: Potential, phases: Sequence[tuple[str, Crystal]], energy: Float64[np.ndarray, " N"]) -> Entries:
    counts = [dict(zip(*np.unique(crystal.numbers, return_counts=True), strict=True)) for _, crystal in phases]
    compositions = [{int(z): int(n) for z, n in count.items()} for count in counts]
    return Entries.of(compositions, energy, [name for name, _ in phases], scale=potential.scale)


def _phases(source: Path) -> list[tuple[str, Crystal]]:
    from crystalforge.crystal.reading.reasons import Unusable
    from crystalforge.data.sources.tables import ParquetRecords

    if not source.is_file():
        raise InputError("there is no such file", source=source, remedy="give a parquet of structures")
    found = []
    for record in ParquetRecords(source, splits=False).records():
        try:
            found.append((record.id, record.crystal()))
        except Unusable as error:
            raise InputError(str(error), source=source, record=record.number, remedy="leave the row out") from error
    if not found:
        raise InputError("holds no structures", source=source, remedy="give a parquet of structures")
    return found
