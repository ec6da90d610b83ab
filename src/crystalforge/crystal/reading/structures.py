"""Structures that are no CIF: VASP's POSCAR, pymatgen's dictionaries (JSON), rows of a table."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.reasons import Unusable

ARRAYS = ("lattice", "atomic_numbers", "frac_coords")
SYMBOLS = re.compile(r"\s*([A-Za-z][\w./-]*\s*)+([#!].*)?")


def read_poscar(text: str) -> Crystal:
    """The crystal of a POSCAR, which must name its elements (VASP 5 and later). Raises Unusable."""
    from pymatgen.io.vasp import Poscar

    lines = text.splitlines()
    if len(lines) < 8:
        raise Unusable("malformed-record", f"is no POSCAR: it has {len(lines)} lines", text[:80])
    if not SYMBOLS.fullmatch(lines[5]):
        raise Unusable("unknown-element", "line 6 does not name the elements (a POSCAR of VASP 4?)", lines[5])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Poscar.from_str(text, read_velocities=False).structure
    except Exception as error:  # pymatgen raises whatever its parsing meets
        said = str(error).partition("\n")[0] or type(error).__name__
        raise Unusable("malformed-record", f"is no POSCAR ({said[:160]})", text[:80]) from error
    return from_structure(structure)


def structure_of(content: Any) -> Crystal:
    """The crystal of a pymatgen structure as a dictionary. Raises Unusable."""
    from pymatgen.core import Structure

    if not isinstance(content, dict) or "sites" not in content or "lattice" not in content:
        raise Unusable("malformed-record", "is no pymatgen structure: it has no lattice or no sites", str(content)[:80])
    wanted = {key: value for key, value in content.items() if key in ("lattice", "sites")}
    # What a structure carries besides (charge, properties, labels) may be anything, null and NaN too.
    kept = ("species", "abc", "xyz")
    try:
        wanted["sites"] = [{key: site[key] for key in kept if key in site} for site in content["sites"]]
        structure = Structure.from_dict(wanted)
    except Exception as error:  # a value of any shape arrives here
        raise Unusable("malformed-record", f"is no pymatgen structure ({error})", str(content)[:80]) from error
    return from_structure(structure)


def from_structure(structure: Any) -> Crystal:
    """The crystal of a pymatgen structure. Raises Unusable for partial occupancy and for what is no element."""
    from pymatgen.core import DummySpecies

    for site in structure:
        name = site.species_string
        if len(site.species) != 1 or abs(next(iter(site.species.values())) - 1) > 1e-3:
            raise Unusable("partial-occupancy", f"site {name} is partially occupied", name)
        if not 1 <= int(getattr(site.specie, "Z", 0) or 0) <= 118 or isinstance(site.specie, DummySpecies):
            raise Unusable("unknown-element", f"{name} is no element", name)
    numbers = [int(site.specie.Z) for site in structure]
    return Crystal.of(structure.lattice.matrix, numbers, structure.frac_coords)


def crystal_of(row: Mapping[str, Any]) -> Crystal:
    """The crystal of a table's row: lattice (9 numbers, row vectors, Å), atomic_numbers, frac_coords (flattened).

    Cells may be JSON text, as in a CSV file. Raises Unusable.
    """
    try:
        values = [json.loads(cell) if isinstance(cell := row[name], str) else cell for name in ARRAYS]
        lattice, numbers, frac = (np.array(value, dtype=np.float64).ravel() for value in values)
    except (TypeError, ValueError) as error:
        said = f"lattice, numbers or coordinates are not numeric ({error})"
        raise Unusable("malformed-record", said) from error
    if lattice.size != 9 or not numbers.size or frac.size != 3 * numbers.size:
        sizes = f"{lattice.size} lattice, {numbers.size} atomic numbers, {frac.size} coordinate values"
        raise Unusable("malformed-record", f"expected 9 lattice values and 3 coordinates per atom, not {sizes}", sizes)
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        raise Unusable("malformed-record", "lattice or coordinates are not finite")
    unknown = numbers[(numbers != np.round(numbers)) | (numbers < 1) | (numbers > 118)]
    if unknown.size:
        raise Unusable("unknown-element", f"Z = {unknown[0]:g} is no element", f"{unknown[0]:g}")
    return Crystal.of(lattice, numbers.astype(np.int32), frac)
