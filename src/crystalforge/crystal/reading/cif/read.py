"""A data block -> a crystal: cell, sites, symmetry, and whether the block agrees with itself.

Every file takes this one way. Where symbol or number leave the origin or the axes open, each possibility is built; the
file's own statements (formula and Z, volume, density, multiplicities) and the distances between the atoms decide, and
where they do not, the file is refused. A site that lies within 0.1 Å of a special position is moved onto it: its
coordinates were rounded when they were written.

Shapes: S sites as listed, M operations, n atoms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal import Crystal
from crystalforge.crystal import wyckoff as tables
from crystalforge.crystal.reading.cif.species import atomic_numbers
from crystalforge.crystal.reading.cif.symmetry import METRIC_TOLERANCE, Setting, settings
from crystalforge.crystal.reading.cif.syntax import NULL, Block, read_block
from crystalforge.crystal.reading.consistency import Stated, check, read_formula
from crystalforge.crystal.reading.reasons import Unusable

CELL = tuple(f"_cell_{name}" for name in ("length_a", "length_b", "length_c"))
ANGLES = tuple(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma"))
FRACTIONS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
MULTIPLICITY = ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity")
WYCKOFF = ("_atom_site_wyckoff_symbol", "_atom_site_wyckoff_letter", "_atom_site_wyckoff_label")
SUM = "_chemical_formula_sum"
OTHER_FORMULAS = ("_chemical_formula_structural", "_chemical_formula_iupac", "_chemical_formula_analytical")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:\(\d+\))?")
RATIO = re.compile(r"([+-]?\d+)/([1-9]\d*)")
IDEAL_TOLERANCE = 1e-4  # relative; a coordinate this near to 1/3 or 2/3 was rounded when written (as in pymatgen)
SNAP = 0.1  # Å between an atom and its image: one atom on a special position, written with few digits
FULL = 1e-3  # an occupancy this near to 1 is 1
DUMMY = ("dum", "dummy")


@dataclass(frozen=True, eq=False)
class Sites:
    """Sites as listed; multiplicity: as stated, 0 where it is not; letters: Wyckoff letters, '' where not stated."""

    labels: list[str]
    numbers: list[int]
    frac: Float64[np.ndarray, "S 3"]
    multiplicity: list[int]
    letters: list[str]


def parse_cif(text: str) -> Crystal:
    """The crystal of the first block with atoms. Raises Unusable with a reason code."""
    block = read_block(text)
    lattice = _cell(block)
    stated = _stated(block)
    sites = _sites(block, stated)
    found = settings(block)
    if not found:
        found = [_undeclared(stated)]
    return _build(found, lattice, sites, stated)


def _build(found: Sequence[Setting], lattice: np.ndarray, sites: Sites, stated: Stated) -> Crystal:
    """The crystal of the one setting that the block allows."""
    built: list[tuple[Setting, Crystal]] = []
    failed: list[Unusable] = []
    for setting in found:
        try:
            built.append((setting, _crystal(setting, lattice, sites, stated)))
        except Unusable as error:
            failed.append(error)
    if not built:
        raise failed[0]
    setting, crystal = built[0]
    for other, another in built[1:]:
        if not _same(crystal, another):
            raise Unusable(
                "ambiguous-symmetry",
                f"the symmetry can be read as {setting.name}, which gives {crystal.formula}, or as {other.name}, "
                f"which gives {another.formula}: the file gives no operations and does not say which",
                setting.name,
            )
    return crystal


def _crystal(setting: Setting, lattice: np.ndarray, sites: Sites, stated: Stated) -> Crystal:
    if not setting.trivial and (misfit := setting.misfit(lattice)) > METRIC_TOLERANCE:
        shown = " ".join(f"{value:.5g}" for value in _parameters(lattice))
        raise Unusable(
            "contradiction", f"the cell ({shown}) does not have the symmetry of {setting.name} (off by {misfit:.2g})"
        )
    orbits = [sites.frac] if setting.trivial else [_orbit(setting, lattice, *site) for site in _named(sites)]
    sizes = np.ones(len(sites.labels), int) if setting.trivial else np.array([len(orbit) for orbit in orbits])
    _check_multiplicities(setting, sites, sizes)
    numbers = np.repeat(np.array(sites.numbers), sizes)
    frac = np.concatenate(orbits)
    order = _order(numbers)
    crystal = Crystal.of(lattice, numbers[order], frac[order])
    try:
        check(crystal, stated)
    except Unusable as error:
        shown = "" if setting.trivial else f" (read as {setting.name})"
        raise Unusable(error.reason, f"{error}{shown}", error.value) from error
    return crystal


def _named(sites: Sites) -> list[tuple[str, np.ndarray]]:
    return list(zip(sites.labels, sites.frac, strict=True))


def _orbit(setting: Setting, lattice: np.ndarray, label: str, point: np.ndarray) -> np.ndarray:
    """All atoms of one site in the cell, the site itself first and moved onto its position if it is special."""
    images = setting.rotations @ point + setting.translations
    away = images - point
    away -= np.rint(away)
    near = np.linalg.norm(away @ lattice, axis=1) < SNAP
    order = int(near.sum())
    if order > 1:
        point = point + away[near].mean(axis=0)
        images = setting.rotations @ point + setting.translations
    # An odd offset, so that no coordinate that people write falls between two cells of this grid.
    keys = np.floor(images * 1e6 + 0.1370931).astype(np.int64) % 1_000_000
    _, first = np.unique(keys, axis=0, return_index=True)
    if len(first) * order != len(images):
        raise Unusable(
            "overlap", f"site {label} is near a special position of {setting.name} without being on it", label
        )
    return images[np.sort(first)]


def _check_multiplicities(setting: Setting, sites: Sites, sizes: Int64[np.ndarray, " S"]) -> None:
    """Raise Unusable where the file states another multiplicity or a Wyckoff letter of another one."""
    letters = tables.multiplicity()[setting.number - 1]
    general = int(letters.max())
    for label, size, stated, letter in zip(
        sites.labels, sizes.tolist(), sites.multiplicity, sites.letters, strict=True
    ):
        if stated and stated != size:
            raise Unusable(
                "contradiction",
                f"site {label} is stated to have multiplicity {stated}, {setting.name} makes {size} of it",
                label,
            )
        index = " abcdefghijklmnopqrstuvwxyzA".find(letter) if letter else 0
        if index > 0 and letters[index] * len(setting.rotations) != size * general:
            raise Unusable(
                "contradiction",
                f"site {label} is stated on Wyckoff position {letter}, {setting.name} makes {size} atoms of it",
                label,
            )


def _undeclared(stated: Stated) -> Setting:
    """P 1 for a file without a word on symmetry: taken only where the file proves that all its atoms are listed."""
    if (stated.formula is None or stated.units is None) and stated.density is None:
        raise Unusable(
            "ambiguous-symmetry",
            "the file says nothing about symmetry (no operations, symbol or number), nor how much its cell holds",
        )
    return Setting("P 1 (nothing is stated)", 1, np.eye(3)[None], np.zeros((1, 3)))


def _cell(block: Block) -> np.ndarray:
    """Row vectors in Å with c along z and a in the xz plane (pymatgen's orientation)."""
    values = []
    for name in (*CELL, *ANGLES):
        text = block.get(name)
        value = None if text is None else _number(text)
        if value is None:
            seen = f"{name} is missing" if text is None else f"{name} is {text!r}, no number"
            raise Unusable("malformed-cif", f"there is no cell: {seen}", text or "")
        values.append(value)
    a, b, c = values[:3]
    alpha, beta, gamma = (math.radians(angle) for angle in values[3:])
    sines = math.sin(alpha) * math.sin(beta)
    cosine = (math.cos(alpha) * math.cos(beta) - math.cos(gamma)) / sines if sines else math.inf
    if min(values) <= 0 or abs(cosine) >= 1 or max(values[3:]) >= 180:
        shown = " ".join(f"{value:g}" for value in values)
        raise Unusable("degenerate-cell", f"the edges and angles {shown} enclose no cell", shown)
    star = math.acos(cosine)
    return np.array(
        [
            [a * math.sin(beta), 0.0, a * math.cos(beta)],
            [-b * math.sin(alpha) * math.cos(star), b * math.sin(alpha) * math.sin(star), b * math.cos(alpha)],
            [0.0, 0.0, c],
        ]
    )


def _parameters(lattice: np.ndarray) -> list[float]:
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = (lattice @ lattice.T) / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos(np.clip([cosines[1, 2], cosines[0, 2], cosines[0, 1]], -1, 1)))
    return [*lengths.tolist(), *angles.tolist()]


def _stated(block: Block) -> Stated:
    """What the block says of itself beside the atoms."""
    text = block.get(SUM)
    formula = None if text is None else read_formula(text)
    whole = formula is not None
    for name in OTHER_FORMULAS:
        other = block.get(name)
        if formula is None and other is not None:
            text, formula = other, read_formula(other)
    numbers = {name: _number(block.get(name) or "") for name in ("_cell_formula_units_z", "_cell_volume")}
    density = _number(block.get("_exptl_crystal_density_diffrn") or "")
    return Stated(formula, numbers["_cell_formula_units_z"], numbers["_cell_volume"], density, text or "", whole)


def _sites(block: Block, stated: Stated) -> Sites:
    """The sites of the block. Raises Unusable for a partially occupied one, and for one without element or place."""
    rows = block.table(*FRACTIONS)
    if not rows or any(name not in rows for name in FRACTIONS):
        if block.table("_atom_site_cartn_x"):
            raise Unusable("malformed-cif", "the sites have Cartesian coordinates only; fractional ones are wanted")
        raise Unusable("malformed-cif", "the CIF holds no structure: there are no fractional coordinates")
    count = len(rows[FRACTIONS[0]])

    def column(*names: str) -> list[str | None]:
        values = next((rows[name] for name in names if name in rows), [None] * count)
        return [None if value in (*NULL, None, "") else value for value in values]

    types = column("_atom_site_type_symbol")
    labels = [
        label or symbol or f"number {number}"
        for number, (label, symbol) in enumerate(zip(column("_atom_site_label"), types, strict=True), start=1)
    ]
    flags = column("_atom_site_calc_flag")
    kept = [row for row in range(count) if (flags[row] or "").lower() not in DUMMY]
    coordinates = list(zip(*(rows[name] for name in FRACTIONS), strict=True))
    frac = np.array([[_coordinate(text, labels[row]) for text in coordinates[row]] for row in kept]).reshape(-1, 3)
    if not kept:
        raise Unusable("malformed-cif", "the CIF holds no structure: no site is an atom")
    hydrogens = column("_atom_site_attached_hydrogens")
    for row in kept:
        if (_number(hydrogens[row] or "0") or 0) > 0:
            raise Unusable(
                "contradiction",
                f"site {labels[row]} has {hydrogens[row]} hydrogen atoms attached of which no place is given",
                labels[row],
            )
    disorder = column("_atom_site_disorder_group")
    if len(groups := {disorder[row] for row in kept} - {None, "0"}) > 1:
        first = next(row for row in kept if disorder[row] in groups)
        message = f"site {labels[first]} is disordered: the file has the groups {', '.join(sorted(map(str, groups)))}"
        raise Unusable("partial-occupancy", message, labels[first])
    for row in kept:
        _check_occupancy(rows.get("_atom_site_occupancy", ["."] * count)[row], labels[row], stated)
    numbers = atomic_numbers([types[row] for row in kept], [labels[row] for row in kept], stated.formula or ())
    multiplicities = [_number(text or "") or 0 for text in column(*MULTIPLICITY)]
    letters = [_letter(text) for text in column(*WYCKOFF)]
    frac[np.abs(frac * 3 - 1) < IDEAL_TOLERANCE] = 1 / 3
    frac[np.abs(frac * 1.5 - 1) < IDEAL_TOLERANCE] = 2 / 3
    return Sites(
        [labels[row] for row in kept],
        numbers,
        frac,
        [round(multiplicities[row]) for row in kept],
        [letters[row] for row in kept],
    )


def _check_occupancy(text: str, label: str, stated: Stated) -> None:
    """Raise Unusable unless a site is full. The dictionary's default is 1; unknown is 1 where a formula can tell."""
    if text == "." or (text == "?" and stated.formula is not None):
        return
    value = _number(text)
    if value is None or value > 1 + FULL or value < 0:
        raise Unusable("malformed-cif", f"site {label} has the occupancy {text!r}, which is no share of 1", text)
    if value < 1 - FULL:
        raise Unusable("partial-occupancy", f"site {label} is partially occupied: {value:g}", label)


def _coordinate(text: str, label: str) -> float:
    value = _number(text)
    if value is None:
        raise Unusable("malformed-cif", f"site {label} has no place: a coordinate is {text!r}", text)
    return value


@cache
def _number(text: str) -> float | None:
    """A number as a CIF writes it, its uncertainty left out; also a ratio (1/3). None for anything else."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return float(text.partition("(")[0])
    ratio = RATIO.fullmatch(text)
    return int(ratio.group(1)) / int(ratio.group(2)) if ratio else None


def _letter(text: str | None) -> str:
    found = re.fullmatch(r"\d*\s*([A-Za-z])", (text or "").strip())
    if found is None:
        return ""
    return "A" if found.group(1) == "A" else found.group(1).lower()


@cache
def _electronegativities() -> list[tuple[float, str]]:
    """(electronegativity, symbol) by atomic number; elements without one come last."""
    import warnings

    from pymatgen.core.periodic_table import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [(float(Element.from_Z(z).X), Element.from_Z(z).symbol) for z in range(1, 119)]
    return [(0.0, ""), *((math.inf if math.isnan(value) else value, symbol) for value, symbol in found)]


def _order(numbers: np.ndarray) -> list[int]:
    """Atoms by electronegativity, as pymatgen orders them: what spglib makes of equal crystals is then equal."""
    known = _electronegativities()
    keys = [known[number] for number in numbers.tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _same(one: Crystal, other: Crystal) -> bool:
    """Whether two readings are one crystal, up to its place in the cell."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    if one.formula != other.formula:
        return False
    matcher = StructureMatcher(primitive_cell=False, scale=False)
    return bool(matcher.fit(one.to_structure(), other.to_structure()))
