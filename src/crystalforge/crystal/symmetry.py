"""Crystals -> tokens: find the space group, put the crystal in its standard setting, name every orbit.

The choice among equivalent descriptions is that of the CrystalFormer code (pymatgen's refinement followed by
pyxtal's reading), reached by fewer steps and without either package:

1. spglib standardises the crystal in its default setting.
2. spglib standardises the result in the setting of our Wyckoff table (they differ where there are two origins).
   Orbits and their letters come from this step. When it fails it is tried again with tolerance 1e-4 Å.
3. Of each orbit the first atom, moved by the first operation of the general position that brings it onto the
   representative of the orbit's Wyckoff position, gives the coordinates.
4. Sites are ordered by (letter, x, y, z) as float32 numbers, the order in which the published model was trained.

The reference names the orbits by one more search, on the result of step 2. We carry the names of step 2 over to its
result and check each against the table; a name that the coordinates contradict is replaced by the one they satisfy,
and that is where the reference arrives too.

Shapes: n atoms of the standard cell, K orbits, M operations of the general position.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.common.errors import InputError
from crystalforge.crystal import fcc, lattice, wyckoff
from crystalforge.crystal.crystal import Crystal
from crystalforge.crystal.tokens import ATOM_TYPES, Tokens

ANGLE_TOLERANCE = 5.0  # degrees; spglib's lattice search, as in pymatgen
# Sum of fractional distances below which an atom lies on a representative: the reference's value. It is wide because
# nothing is lost by it: the search of step 1 has already moved every atom onto its position.
POSITION_TOLERANCE = 0.01
FALLBACK_SYMPREC = 1e-4

Reason = Literal[
    "missing",
    "empty",
    "element",
    "not_finite",
    "degenerate_cell",
    "symmetry",
    "wyckoff",
    "too_many_sites",
    "crash",
]


class TokenizeError(InputError):
    """A crystal that has no tokens. `reason` is a code to count by; the message says what was seen."""

    def __init__(self, reason: Reason, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem, remedy=remedy)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        # It comes back from worker processes; keyword arguments need help to survive that.
        return (_rebuild, (self.reason, self.problem, self.remedy))


def _rebuild(reason: Reason, problem: str, remedy: str | None) -> TokenizeError:
    return TokenizeError(reason, problem, remedy=remedy)


def tokenize(crystal: Crystal, *, symprec: float = 0.01, max_sites: int = 20) -> Tokens:
    """Tokens of one crystal, in `max_sites + 1` slots; raises TokenizeError when it has none.

    symprec: distance in Å within which atoms count as symmetry-related.
    """
    _check(crystal)
    quick = _short_cut(crystal, symprec)
    if quick is not None:
        return _as_tokens(*quick, max_sites=max_sites)
    refined = _search((crystal.lattice, crystal.frac, crystal.numbers), symprec, 0)
    if refined is None:
        raise TokenizeError(
            "symmetry", f"no symmetry could be found within {symprec:g} Å: atoms overlap or the cell is too distorted",
            remedy="check for duplicated atoms, or try another symprec",
        )  # fmt: skip
    cell = (refined.std_lattice, refined.std_positions, refined.std_types)
    for tolerance in (symprec, FALLBACK_SYMPREC):
        found = _standardize(cell, tolerance)
        sites = None if found is None else _sites(found)
        if found is not None and sites is not None:
            return _as_tokens(int(found.number), found.std_lattice, *sites, max_sites=max_sites)
    raise TokenizeError("wyckoff", f"the orbits do not fit the Wyckoff positions of space group {refined.number}")


def _check(crystal: Crystal) -> None:
    if len(crystal) == 0:
        raise TokenizeError("empty", "the crystal has no atoms")
    lowest, highest = int(crystal.numbers.min()), int(crystal.numbers.max())
    if lowest < 1 or highest >= ATOM_TYPES:
        wrong = lowest if lowest < 1 else highest
        raise TokenizeError("element", f"atomic number {wrong} is not between 1 and {ATOM_TYPES - 1}")
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac).all()):
        raise TokenizeError("not_finite", "the lattice or a coordinate is not a finite number")
    with np.errstate(invalid="ignore", divide="ignore"):  # a vector of length zero
        sound = lattice.is_cell(lattice.from_matrix(crystal.lattice[None]))[0]
    if not sound:
        raise TokenizeError("degenerate_cell", f"the cell vectors enclose no volume ({crystal.volume:.3g} Å^3)")


def _search(cell: tuple[Any, Any, Any], symprec: float, hall: int) -> Any:
    """spglib's dataset in the setting `hall` (0: its default), or None when it finds no consistent symmetry."""
    import spglib

    with warnings.catch_warnings():
        # spglib is about to raise where it now returns None, and says so at every call; both are handled.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return spglib.get_symmetry_dataset(cell, symprec=symprec, angle_tolerance=ANGLE_TOLERANCE, hall_number=hall)
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "spglib":
                return None
            raise


def _standardize(cell: tuple[Any, Any, Any], symprec: float) -> Any:
    """Dataset in the table's setting, or None when there is none.

    The group has to be asked for before the setting: a refined cell may have more symmetry within the tolerance
    than the cell it came from, and a setting of the smaller group would hide that.
    """
    found = _search(cell, symprec, 0)
    if found is not None:
        hall = int(wyckoff.hall_numbers()[found.number - 1])
        if hall != found.hall_number:
            found = _search(cell, symprec, hall)
    return found


Sites = tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], Float64[np.ndarray, "K 3"]]


def _sites(found: Any) -> Sites | None:
    """Letter, element and coordinates of each orbit of the standard cell; None when one fits nowhere."""
    # Names and orbits are given for the atoms that went in; the primitive cell links them with those that came out.
    first_input = np.zeros(len(found.mapping_to_primitive), dtype=np.int64)
    primitive, position = np.unique(found.mapping_to_primitive, return_index=True)
    first_input[primitive] = position
    source = first_input[found.std_mapping_to_primitive]
    # Not `equivalent_atoms`: those are related by the operations as they were found, approximate ones among them.
    _, first, size = np.unique(found.crystallographic_orbits[source], return_index=True, return_counts=True)
    order = np.argsort(first)
    first, size = first[order], size[order]
    names = [wyckoff.letter_index(found.wyckoffs[source[atom]]) for atom in first]
    placed = _place(found.number, general_images(found.number, found.std_positions[first]), size, names)
    return None if placed is None else (placed[0], found.std_types[first].astype(np.int64), placed[1])


def _short_cut(
    crystal: Crystal, symprec: float
) -> tuple[int, Float64[np.ndarray, "3 3"], Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], np.ndarray] | None:
    """Group, standard cell and sites of a crystal on a face-centred cubic lattice; None: it must go the long way."""
    standard = fcc.standard_positions(crystal, symprec, _search)
    if standard is None:
        return None
    g, cell, positions = standard
    found = fcc.orbits(general_images(g, positions), crystal.numbers, cell, symprec)
    if found is None:
        return None
    first, size, exact = found
    placed = _place(g, general_images(g, exact), size, [0] * len(first))
    if placed is None or placed[0].max() > fcc.LAST_LETTER[g]:
        return None
    return g, cell, placed[0], crystal.numbers[first].astype(np.int64), placed[1]


def _place(
    g: int, images: Float64[np.ndarray, "K M 3"], size: Int64[np.ndarray, " K"], names: list[int]
) -> tuple[Int64[np.ndarray, " K"], Float64[np.ndarray, "K 3"]] | None:
    """Letter and representative coordinates of orbits given by their images; a name of 0 is no name."""
    multiplicity = wyckoff.multiplicity()[g - 1]
    letters, coords = np.zeros(len(images), dtype=np.int64), np.zeros((len(images), 3))
    for k, name in enumerate(names):
        # The general position first, then down to a: the order in which the reference tries them.
        others = np.flatnonzero(multiplicity == size[k])[::-1].tolist()
        for w in [name, *others] if name in others else others:
            point = _on_representative(g, w, images[k])
            if point is not None:
                letters[k], coords[k] = w, point
                break
        else:
            return None
    return letters, coords


def general_images(g: int, points: Float64[np.ndarray, "K 3"]) -> Float64[np.ndarray, "K M 3"]:
    """Each point under every operation of the space group, in the order of the general position."""
    table, top = wyckoff.operation_table(), int(wyckoff.n_letters()[g - 1])
    start = int(table.offset[g - 1, top])
    rows = slice(start, start + int(wyckoff.multiplicity()[g - 1, top]))
    rotations = table.rotations[rows].astype(np.float64)
    return np.einsum("mij,kj->kmi", rotations, points) + table.translations[rows]


def _on_representative(g: int, w: int, images: Float64[np.ndarray, "M 3"]) -> Float64[np.ndarray, " 3"] | None:
    """The first image that lies on the representative of (g, w), moved exactly onto it, in [0, 1)."""
    operation = wyckoff.representatives()[g - 1, w]
    away = images @ operation[:, :3].T + operation[:, 3] - images
    near = np.abs(away - np.rint(away)).sum(axis=1) < POSITION_TOLERANCE
    if not near.any():
        return None
    image = images[int(np.argmax(near))]
    return (operation[:, :3] @ (image - np.floor(image)) + operation[:, 3]) % 1.0


def _as_tokens(
    g: int,
    cell: Float64[np.ndarray, "3 3"],
    letters: Int64[np.ndarray, " K"],
    elements: Int64[np.ndarray, " K"],
    coords: Float64[np.ndarray, "K 3"],
    *,
    max_sites: int,
) -> Tokens:
    if len(letters) > max_sites:
        raise TokenizeError(
            "too_many_sites",
            f"the crystal has {len(letters)} symmetry-inequivalent sites, at most {max_sites} are kept",
        )
    by_letter = np.argsort(letters, kind="stable")
    single = coords.astype(np.float32)
    order = by_letter[
        np.lexsort((single[by_letter, 2], single[by_letter, 1], single[by_letter, 0], letters[by_letter]))
    ]
    slots, n_sites = max_sites + 1, len(letters)
    wyckoffs, element, xyz = (
        np.zeros((1, slots), np.int32),
        np.zeros((1, slots), np.int32),
        np.zeros((1, slots, 3)),
    )
    wyckoffs[0, :n_sites], element[0, :n_sites], xyz[0, :n_sites] = (
        letters[order],
        elements[order],
        coords[order],
    )
    spacegroup = np.array([g], dtype=np.int32)
    n_atoms = int(wyckoff.multiplicity()[g - 1, letters].sum())
    parameters = lattice.from_matrix(cell[None])
    parameters = lattice.symmetrize(spacegroup, lattice.averaged(spacegroup, parameters))
    parameters[:, :3] /= np.cbrt(n_atoms)
    return Tokens(spacegroup, wyckoffs, element, xyz, parameters)
