"""A crystal as its conventional cell and as a CIF with its symmetry, from one symmetry search."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32

from crystalforge.crystal import Crystal

SYMPREC = 0.01  # Å; the tokeniser's own
SAME_SITE = 1e-3  # fractional; images of one site under the symmetry agree far better than this after idealisation


def symmetrised(crystal: Crystal, symprec: float = SYMPREC) -> tuple[int, Crystal, str]:
    """Space-group number, conventional cell and CIF text.

    Where no symmetry is found within `symprec` (Å) the cell is the crystal's own, in P1.
    """
    import spglib

    cell: Any = (crystal.lattice, crystal.frac, crystal.numbers)
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:  # a broken or overlapping cell
        found = None
    if found is None:
        return 1, crystal, cif(crystal, 1, "P 1", [(np.eye(3, dtype=np.int32), np.zeros(3))])
    conventional = Crystal.of(found.std_lattice, found.std_types, found.std_positions)
    database: Any = spglib.get_symmetry_from_database(found.hall_number)
    operations = list(zip(database["rotations"], database["translations"], strict=True))
    return int(found.number), conventional, cif(conventional, int(found.number), found.international, operations)


def cif(
    crystal: Crystal,
    number: int,
    symbol: str,
    operations: list[tuple[Int32[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]],
) -> str:
    """CIF text of a conventional cell; only one site of each orbit of `operations` is listed."""
    from pymatgen.core.periodic_table import Element

    names = [Element.from_Z(int(z)).symbol for z in crystal.numbers]
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    a, b, c = crystal.lattice / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([b @ c, a @ c, a @ b], -1, 1)))
    formula = " ".join(f"{name}{names.count(name)}" for name in dict.fromkeys(names))
    lines = [
        f"data_{formula.replace(' ', '')}",
        f"_chemical_formula_sum '{formula}'",
        *(f"_cell_length_{axis} {length:.6f}" for axis, length in zip("abc", lengths, strict=True)),
        *(f"_cell_angle_{name} {angle:.6f}" for name, angle in zip(("alpha", "beta", "gamma"), angles, strict=True)),
        f"_cell_volume {crystal.volume:.6f}",
        f"_symmetry_space_group_name_H-M '{symbol}'",
        f"_symmetry_Int_Tables_number {number}",
        "loop_",
        "_symmetry_equiv_pos_site_id",
        "_symmetry_equiv_pos_as_xyz",
        *(f"{k} '{_xyz(turn, shift)}'" for k, (turn, shift) in enumerate(operations, start=1)),
        "loop_",
        "_atom_site_label",
        "_atom_site_type_symbol",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
    ]
    seen: dict[str, int] = {}
    for site, multiplicity in _orbits(crystal, operations):
        name = names[site]
        seen[name] = seen.get(name, 0) + 1
        x, y, z = (f"{value:.6f}" for value in crystal.frac[site] % 1)
        lines.append(f"{name}{seen[name]} {name} {multiplicity} {x} {y} {z} 1")
    return "\n".join(lines) + "\n"


def _orbits(
    crystal: Crystal, operations: list[tuple[Int32[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]]
) -> list[tuple[int, int]]:
    """First site and size of each orbit."""
    turns = np.array([turn for turn, _ in operations], dtype=np.float64)
    shifts = np.array([shift for _, shift in operations], dtype=np.float64)
    left = np.ones(len(crystal), dtype=bool)
    orbits = []
    for site in range(len(crystal)):
        if not left[site]:
            continue
        images = turns @ crystal.frac[site] + shifts
        apart = images[:, None, :] - crystal.frac[None, :, :]
        near = (np.abs(apart - np.round(apart)).max(axis=2) < SAME_SITE).any(axis=0)
        orbit = near & left & (crystal.numbers == crystal.numbers[site])
        left &= ~orbit
        orbits.append((site, int(orbit.sum())))
    return orbits


def _xyz(turn: Int32[np.ndarray, "3 3"], shift: Float64[np.ndarray, " 3"]) -> str:
    """An operation as a coordinate triplet, such as `-y, x-y, z+1/3`."""
    parts = []
    for row, move in zip(turn, shift, strict=True):
        text = ""
        for factor, axis in zip(row, "xyz", strict=True):
            if factor:
                text += ("-" if factor < 0 else "+" if text else "") + axis
        fraction = Fraction(float(move)).limit_denominator(24)
        if fraction:
            text += f"{'+' if fraction > 0 else '-'}{abs(fraction)}"
        parts.append(text)
    return ", ".join(parts)
