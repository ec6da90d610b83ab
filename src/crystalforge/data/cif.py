"""CIF text to crystals. Expanded (P1) files, which data sets of structures consist of, take a short cut.

pymatgen reads about a hundred files a second, because it handles everything a CIF can say. A file that lists every
atom says little: cell, elements, coordinates. Whatever the short cut does not understand goes to pymatgen.
"""

from __future__ import annotations

import math
import re
import shlex
import warnings
from collections.abc import Iterator

import numpy as np

from crystalforge.crystal import Crystal

IDEAL_TOLERANCE = 1e-4  # relative; a coordinate this near to 1/3 or 2/3 was rounded when written (as in pymatgen)
SAME_SITE = 1e-3  # fractional; atoms nearer than this are one partially occupied or repeated site: pymatgen's business
CELL_KEYS = tuple(f"_cell_{name}" for name in ("length_a", "length_b", "length_c"))
ANGLE_KEYS = tuple(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma"))
NUMBER_KEYS = ("_symmetry_int_tables_number", "_space_group_it_number")
OPERATION_KEYS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
FRACTIONS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
UNCERTAINTY = re.compile(r"\([0-9]+\)$")
SYMBOL = re.compile(r"[A-Z][a-z]?")
NO_ELECTRONEGATIVITY = frozenset((2, 10, 18, *range(95, 119)))


class CifError(ValueError):
    """A CIF that gives no ordered crystal; `reason` is a short code for the rejects file, `value` what was seen."""

    def __init__(self, reason: str, message: str, value: str = "") -> None:
        super().__init__(message)
        self.reason, self.value = reason, value


def split_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each data block of a file that has atoms."""
    starts = [match.start() for match in re.finditer(r"(?m)^data_", text)]
    for first, last in zip(starts, [*starts[1:], len(text)], strict=True):
        block = text[first:last]
        if "_atom_site_" in block or len(starts) == 1:
            yield block.split(None, 1)[0][len("data_") :], block


def parse_cif(text: str) -> Crystal:
    """The crystal of the first block of a CIF. Raises CifError with a reason code."""
    crystal = _expanded(text)
    return crystal if crystal is not None else _general(text)


def _general(text: str) -> Crystal:
    """Through pymatgen."""
    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")
    except Exception as error:  # the parser raises whatever its libraries raise on a malformed file
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CifError("malformed-cif", f"no structure can be read from this CIF ({line})", text[:80]) from error
    if not found:
        raise CifError("malformed-cif", "the CIF holds no structure", text[:80])
    structure = found[0]
    if not structure.is_ordered:
        partial = next(site for site in structure if not site.is_ordered)
        raise CifError(
            "partial-occupancy", f"site {partial.species_string} is partially occupied", partial.species_string
        )
    for site in structure:
        if not hasattr(site.specie, "Z") or not 1 <= int(site.specie.Z) <= 118:
            raise CifError("unknown-element", f"{site.species_string} is no element", site.species_string)
    structure.remove_oxidation_states()
    return Crystal.from_structure(structure)


def _expanded(text: str) -> Crystal | None:
    """The crystal of a plain P1 file; None for anything out of the ordinary."""
    values, loops = _tokens(text)
    if values is None:
        return None
    if any(values.get(key, "1") != "1" for key in NUMBER_KEYS):
        return None
    atoms: dict[str, list[str]] | None = None
    for loop in loops:
        if FRACTIONS[0] in loop:
            if atoms is not None:
                return None
            atoms = loop
        for key in OPERATION_KEYS:
            if key in loop and [operation.replace(" ", "").lower() for operation in loop[key]] != ["x,y,z"]:
                return None
    if atoms is None or not (any(key in values for key in NUMBER_KEYS) or _says_p1(values, loops)):
        return None
    try:
        lengths = [_number(values[key]) for key in CELL_KEYS]
        angles = [_number(values[key]) for key in ANGLE_KEYS]
        frac = np.array([[_number(text) for text in atoms[key]] for key in FRACTIONS]).T
        symbols = atoms["_atom_site_type_symbol"]
        if any(_number(text) != 1 for text in atoms.get("_atom_site_occupancy", ())):
            return None
        numbers, order = _elements(symbols)
    except (KeyError, ValueError):
        return None
    if frac.shape != (len(numbers), 3) or not len(numbers):
        return None
    for ideal in (1 / 3, 2 / 3):
        frac[np.abs(frac / ideal - 1) < IDEAL_TOLERANCE] = ideal
    lattice = _lattice(lengths, angles)
    if lattice is None or _coincide(frac):
        return None
    return Crystal.of(lattice, np.array(numbers)[order], frac[order])


def _says_p1(values: dict[str, str], loops: list[dict[str, list[str]]]) -> bool:
    """Whether a file without a group number is in P1 by its operations (which were checked) or its symbol."""
    if any(key in loop for key in OPERATION_KEYS for loop in loops):
        return True
    names = [values.get("_symmetry_space_group_name_h-m"), values.get("_space_group_name_h-m_alt")]
    return any(name is not None and name.replace(" ", "") == "P1" for name in names)


def _tokens(text: str) -> tuple[dict[str, str] | None, list[dict[str, list[str]]]]:
    """Key-value pairs and loops of a file with one row per line; (None, []) where it is not written like that."""
    values: dict[str, str] = {}
    loops: list[dict[str, list[str]]] = []
    keys: list[str] = []
    rows: list[list[str]] = []
    in_loop = False

    def finish() -> None:
        if keys and rows:
            loops.append(dict(zip(keys, map(list, zip(*rows, strict=True)), strict=True)))

    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith(";"):
            return None, []  # a text field
        if line == "loop_":
            finish()
            keys, rows, in_loop = [], [], True
        elif line.startswith("_"):
            parts = line.split(None, 1)
            if in_loop and not rows and len(parts) == 1:
                keys.append(parts[0].lower())
                continue
            finish()
            keys, rows, in_loop = [], [], False
            if len(parts) == 1:
                return None, []  # its value is on the next line
            values[parts[0].lower()] = parts[1].strip().strip("'\"")
        elif line.startswith("data_"):
            if values or loops:
                return None, []
        elif in_loop and keys:
            try:
                row = shlex.split(line) if "'" in line or '"' in line else line.split()
            except ValueError:
                return None, []
            if len(row) != len(keys):
                return None, []
            rows.append(row)
        else:
            return None, []
    finish()
    return values, loops


def _number(text: str) -> float:
    return float(UNCERTAINTY.sub("", text))


def _elements(symbols: list[str]) -> tuple[list[int], list[int]]:
    """Atomic numbers of `Fe`, `Fe3+` or `Fe1`, and the order of atoms by electronegativity that pymatgen uses.

    KeyError for what is no element, an isotope, or an element without electronegativity.
    """
    from pymatgen.core.periodic_table import Element

    found = [Element.__members__[match.group()] if (match := SYMBOL.match(symbol)) else None for symbol in symbols]
    numbers, keys = [], []
    for element, symbol in zip(found, symbols, strict=True):
        if element is None or symbol[:2].rstrip("0123456789+-") in ("D", "T") or element.Z in NO_ELECTRONEGATIVITY:
            raise KeyError(symbol)
        numbers.append(int(element.Z))
        keys.append((float(element.X), element.symbol))
    return numbers, sorted(range(len(keys)), key=keys.__getitem__)


def _lattice(lengths: list[float], angles: list[float]) -> np.ndarray | None:
    """Row vectors in Å with c along z and a in the xz plane (pymatgen's orientation); None for an impossible cell."""
    a, b, c = lengths
    alpha, beta, gamma = (math.radians(angle) for angle in angles)
    if min(lengths) <= 0 or math.sin(alpha) * math.sin(beta) == 0:
        return None
    cosine = (math.cos(alpha) * math.cos(beta) - math.cos(gamma)) / (math.sin(alpha) * math.sin(beta))
    if abs(cosine) >= 1:
        return None
    star = math.acos(cosine)
    return np.array(
        [
            [a * math.sin(beta), 0.0, a * math.cos(beta)],
            [-b * math.sin(alpha) * math.cos(star), b * math.sin(alpha) * math.sin(star), b * math.cos(alpha)],
            [0.0, 0.0, c],
        ]
    )


def _coincide(frac: np.ndarray) -> bool:
    if len(frac) > 200:
        return True  # comparing all pairs would cost more than it saves
    difference = frac[:, None] - frac[None]
    near = (np.abs(difference - np.round(difference)) < SAME_SITE).all(axis=2)
    return int(near.sum()) > len(frac)
