"""Whether what was read can be what was meant: a crystal against the statements of its record, and against chemistry.

Readers turn a file into atoms; each kind of file lets some mistakes pass in silence (an origin not given, a site not
understood, a cell in other axes, a table cut short). What the same record says elsewhere, and the distances between
the atoms, show them. The check is one for all sources and names both sides.

Shapes: n atoms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.distances import shortest_distances
from crystalforge.crystal.geometry import cell_heights, covalent_radii, nearest
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.symbols import elements

LEAST_SHARE = 0.5  # of the two atoms' summed covalent radii; the closest pair of MP-20's 38,785 crystals has 0.62
LEAST_DISTANCE = 0.5  # Å, whatever the elements
LARGEST_VOLUME = 500.0  # Å^3 for an atom; caesium, the roomiest element, has 117. More is a cell in pm or in nm
LONGEST, LOWEST = 1e4, 0.5  # Å: edges and heights of cells beyond which crystals are looked at alone
SAME_PLACE = 0.02  # Å
VOLUME_TOLERANCE = 0.01
DENSITY_TOLERANCE = 0.1
AMOUNT_TOLERANCE = 0.01  # of a formula's amounts, which are rounded
DIATOMIC = (1, 7, 8, 9, 17)
DALTON = 1.66053907  # g/cm^3 times Å^3 per u
TERM = re.compile(r"([A-Z][a-z]?)\s*([0-9]*\.?[0-9]*)")


@dataclass(frozen=True)
class Stated:
    """What a record says of its crystal beside the atoms; None where it says nothing.

    formula: {atomic number: amount}; units: formula units in the cell (Z); volume: Å^3; density: g/cm^3; text: the
    formula as written. With `whole` the formula may be the cell's content (pymatgen and ASE write it so), else only
    its ratios count.
    """

    formula: Mapping[int, float | int] | None = None
    units: float | int | None = None
    volume: float | int | None = None
    density: float | int | None = None
    text: str = ""
    whole: bool = False


def read_formula(text: str) -> dict[int, float] | None:
    """{atomic number: amount} of a formula such as `Ca1 F2` or `H2O`; None when it is anything but such a list.

    Deuterium counts as hydrogen.
    """
    compact = text.strip().strip("'\"")
    if not compact or TERM.sub("", compact).strip(" ,"):
        return None
    found: dict[int, float] = {}
    for symbol, amount in TERM.findall(compact):
        number = elements().get(symbol)
        if number is None or amount == ".":
            return None
        found[number] = found.get(number, 0.0) + (float(amount) if amount else 1.0)
    return {number: amount for number, amount in found.items() if amount > 0} or None


def check(crystal: Crystal, stated: Stated | None = None, *, apart: bool = False) -> None:
    """Raise Unusable (contradiction, overlap, degenerate-cell, too-sparse) when something cannot be.

    apart: the distances are known to be right (`surely_apart`)."""
    if len(crystal) == 0:
        raise Unusable("malformed-record", "there are no atoms")
    if not np.isfinite(crystal.lattice).all() or not np.isfinite(crystal.frac).all():
        raise Unusable("malformed-record", "lattice or coordinates are not finite")
    edges, volume = np.linalg.norm(crystal.lattice, axis=1), crystal.volume
    if not volume > 1e-3 * edges.prod():
        raise Unusable("degenerate-cell", f"the cell vectors enclose no volume ({volume:.3g} Å^3)")
    if volume > LARGEST_VOLUME * len(crystal):
        each = f"{volume / len(crystal):.4g}"
        message = f"each atom has {each} Å^3, more than the {LARGEST_VOLUME:g} Å^3 that any crystal needs"
        raise Unusable("too-sparse", message, each)
    if stated is not None:
        check_stated(crystal, stated)
    if not apart:
        check_distances(crystal)


def surely_apart(crystals: Sequence[Crystal]) -> Bool[np.ndarray, " B"]:
    """Whether `check_distances` finds nothing in each crystal, many at once, in a tenth of the time.

    False stands for "look at it alone": overlapping atoms, and cells or atoms that are odd in another way.
    """
    ordinary = np.array([_ordinary(crystal) for crystal in crystals], dtype=bool)
    cells = np.stack([crystal.lattice for crystal in crystals]) if len(crystals) else np.zeros((0, 3, 3))
    ordinary[ordinary] = (cell_heights(cells[ordinary]) > LOWEST).all(axis=1)
    packed = PackedCrystals.pack([crystal for crystal, good in zip(crystals, ordinary, strict=True) if good])
    radii = covalent_radii()[packed.numbers]
    apart = (nearest(packed, LEAST_SHARE, radii=radii) == np.inf) & (nearest(packed, LEAST_DISTANCE) == np.inf)
    ordinary[ordinary] = apart
    return ordinary


def _ordinary(crystal: Crystal) -> bool:
    """Atoms of known elements, and numbers that can be counted with."""
    known = len(crystal) > 0 and (crystal.numbers > 0).all() and (crystal.numbers < len(covalent_radii())).all()
    finite = np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac).all()
    return bool(known and finite and np.abs(crystal.lattice).max() < LONGEST)


def check_stated(crystal: Crystal, stated: Stated) -> None:
    """Raise Unusable (contradiction) when a statement is not true of the crystal."""
    volume = crystal.volume
    _check_volume(volume, stated.volume)
    if stated.formula is not None:
        _check_formula(crystal, stated)
    _check_density(crystal, volume, stated.density)


def check_distances(crystal: Crystal) -> None:
    """Raise Unusable (overlap) when two atoms are nearer than any two atoms are."""
    known = (crystal.numbers > 0) & (crystal.numbers < len(covalent_radii()))
    if not known.all() or not len(crystal):
        return
    radii = covalent_radii()[crystal.numbers]
    distance = shortest_distances(crystal.lattice, crystal.frac)
    least = np.maximum(LEAST_SHARE * (radii[:, None] + radii[None]), LEAST_DISTANCE)
    share = distance / least
    if share.min() >= 1:
        return
    one, other = (int(k) for k in np.unravel_index(share.argmin(), share.shape))
    names = " and ".join(_symbol(int(crystal.numbers[k])) for k in (one, other))
    d = distance[one, other]
    if d < SAME_PLACE and one != other:
        same = crystal.numbers[one] == crystal.numbers[other]
        message = f"two {names.split()[0]} atoms on one place" if same else f"{names} on one place"
        if d > 1e-3:
            message += f", {d:.2g} Å apart"
    else:
        message = f"{names} are {d:.3g} Å apart, less than the least distance of {least[one, other]:.2f} Å"
    raise Unusable("overlap", message, f"{d:.3g}")


def _check_volume(found: float, stated: float | int | None) -> None:
    if stated is not None and stated > 0 and abs(found / stated - 1) > VOLUME_TOLERANCE:
        raise Unusable(
            "contradiction", f"the volume is stated as {stated:g} Å^3, edges and angles give {found:.6g} Å^3"
        )


def _check_formula(crystal: Crystal, stated: Stated) -> None:
    assert stated.formula is not None
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    amounts = np.array([stated.formula.get(int(number), 0.0) for number in numbers])
    said = f"the formula is stated as {stated.text}, the atoms are {crystal.formula}"
    if set(stated.formula) != set(numbers.tolist()):
        raise Unusable("contradiction", said, stated.text)
    ratio = counts / amounts
    units = float(counts.sum() / amounts.sum())
    if (np.abs(ratio / units - 1) > AMOUNT_TOLERANCE).any():
        raise Unusable("contradiction", said, stated.text)
    if not stated.whole:
        return
    nearest = max(round(units), 1)
    if abs(units / nearest - 1) > AMOUNT_TOLERANCE:
        raise Unusable("contradiction", f"{said}: {units:.3g} formula units", stated.text)
    if stated.units is not None and stated.units > 0 and round(stated.units) != nearest:
        # Some programs give the content of the cell as the formula, and count units of the reduced one.
        # Of F7 pymatgen counts 3 units of F2.
        molecules = len(numbers) == 1 and int(numbers[0]) in DIATOMIC and counts[0] // 2 == stated.units
        content = nearest == 1 and ((counts % stated.units == 0).all() or molecules)
        if not content:
            raise Unusable(
                "contradiction",
                f"Z is stated as {stated.units:g} units of {stated.text}, the atoms are {crystal.formula}",
                f"{stated.units:g}",
            )


def _check_density(crystal: Crystal, volume: float, stated: float | int | None) -> None:
    if stated is None or stated <= 0:
        return
    found = float(_masses()[crystal.numbers].sum()) * DALTON / volume
    if abs(found / stated - 1) > DENSITY_TOLERANCE:
        raise Unusable(
            "contradiction", f"the density is stated as {stated:g} g/cm^3, atoms and cell give {found:.4g} g/cm^3"
        )


@cache
def _masses() -> np.ndarray:
    """u by atomic number."""
    from pymatgen.core.periodic_table import Element

    return np.array([0.0, *(float(Element.from_Z(z).atomic_mass) for z in range(1, 119))])


def _symbol(number: int) -> str:
    from pymatgen.core.periodic_table import Element

    return Element.from_Z(number).symbol
