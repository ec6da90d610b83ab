"""What a crystal is made of and how its atoms surround each other, as a row of numbers for a regression.

Composition (shares of the elements; mean, spread, least and greatest of some properties of theirs), size, density, and
what lies around each atom: distances in parts of the summed covalent radii, how many neighbours, how different their
electronegativity. No label, no potential, no hull goes into it, so that it serves any reward. An eighth of a
millisecond a crystal of `mp20` on one core.

Shapes: B crystals, N their atoms laid end to end, P neighbours of all of them, F numbers a crystal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int64

from crystalforge.crystal.crystal import Crystal, PackedCrystals
from crystalforge.crystal.geometry import Geometry, cells_sound, covalent_radii

REACH = 5.0  # Å within which neighbours are looked for
CONTACT, WIDTH = 0.7, 0.35
"""A neighbour counts by exp(-((q - contact) / width)^2), q its distance in parts of the summed covalent radii."""
LARGEST_ATOM = 118
LARGEST_VOLUME = 1e6  # Å^3: beyond it a cell is empty, whatever it is
DISTANCES = np.array([0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.35, 1.5, 1.8])
POLAR = np.array([0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6])


@cache
def element_properties() -> Float64[np.ndarray, "119 9"]:
    """By atomic number: electronegativity, atomic radius, group, row, Mendeleev's number, first ionisation energy,
    electron affinity, block (s 0, p 1, d 2, f 3), covalent radius; an ordinary value where none is known."""
    from pymatgen.core.periodic_table import Element

    radii = covalent_radii()
    table = np.zeros((LARGEST_ATOM + 1, 9))
    for number in range(1, LARGEST_ATOM + 1):
        element = Element.from_Z(number)
        data = element.data
        ionisation = data.get("Ionization energies") or [5.0]
        radius = data.get("Atomic radius")
        table[number] = [
            _number(data.get("X"), 1.5),
            _number(radius, 1.5),
            element.group,
            element.row,
            _number(data.get("Mendeleev no"), float(number)),
            _number(ionisation[0], 5.0),
            _number(data.get("Electron affinity"), 0.0),
            "spdf".index(element.block),
            radii[number],
        ]
    return table


def _number(value: object, otherwise: float) -> float:
    try:
        found = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # "no data"
        return otherwise
    return found if np.isfinite(found) else otherwise


def descriptors(
    crystals: Sequence[Crystal], spacegroup: Int64[np.ndarray, " B"], n_sites: Int64[np.ndarray, " B"]
) -> Float32[np.ndarray, "B F"]:
    """A row for each crystal, none of them empty. In a cell that cannot be (see `geometry`) no neighbours are counted.

    The space group and the number of occupied orbits are those that it was written with; the rest does not depend on
    the choice of cell or origin.
    """
    if not len(crystals):
        return np.zeros((0, 6 + 4 * 9 + _AROUND + LARGEST_ATOM), dtype=np.float32)
    packed = PackedCrystals.pack(crystals)
    count = packed.n_atoms.astype(np.int64)
    owner = np.repeat(np.arange(len(crystals)), count)
    numbers = packed.numbers.astype(np.int64)
    shares = np.zeros((len(crystals), LARGEST_ATOM + 1))
    np.add.at(shares, (owner, numbers), 1 / count[owner])
    properties = element_properties()
    mean = shares @ properties
    spread = np.sqrt(np.maximum(shares @ properties**2 - mean**2, 0))
    present = shares > 0
    starts = np.cumsum(count) - count
    least = np.minimum.reduceat(properties[numbers], starts, axis=0)
    greatest = np.maximum.reduceat(properties[numbers], starts, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        volume = np.nan_to_num(np.abs(np.linalg.det(packed.lattice)), nan=LARGEST_VOLUME).clip(max=LARGEST_VOLUME)
    filled = np.add.reduceat(4 / 3 * np.pi * properties[numbers, 8] ** 3, starts)
    size = [spacegroup, n_sites, count, present.sum(axis=1), volume / count, volume / filled]
    parts = [np.stack(size, axis=1), mean, spread, least, greatest, _around(packed, owner, starts), shares[:, 1:]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _around(
    packed: PackedCrystals, owner: Int64[np.ndarray, " N"], starts: Int64[np.ndarray, " B"]
) -> Float64[np.ndarray, "B f"]:
    """Of each crystal: mean, least and greatest over its atoms of what surrounds them, and histograms of distances."""
    first, second, distance = _neighbours(packed, starts)
    properties, atoms, crystals = element_properties(), len(owner), len(starts)
    one, other = packed.numbers[first], packed.numbers[second]
    part = distance / (properties[one, 8] + properties[other, 8])
    weight = np.exp(-((np.maximum(part - CONTACT, 0) / WIDTH) ** 2))
    around = np.bincount(first, weight, atoms)
    whole = np.maximum(around, 1e-9)
    polar = np.abs(properties[one, 0] - properties[other, 0])
    difference = np.bincount(first, weight * polar, atoms) / whole
    alike = np.bincount(first, weight * (one == other), atoms) / whole
    pull = np.bincount(first, weight * properties[other, 0], atoms) / whole - properties[packed.numbers, 0]
    nearest = np.full(atoms, 9.0)
    np.minimum.at(nearest, first, part)
    found = [_spread_over(values, starts, packed.n_atoms) for values in (around, difference, nearest, alike, pull)]
    found += [
        _histogram(part, DISTANCES, np.ones(len(part)), owner[first], crystals) / packed.n_atoms[:, None],
        _histogram(part, POLAR, polar, owner[first], crystals) / packed.n_atoms[:, None],
    ]
    return np.concatenate(found, axis=1)


_AROUND = 5 * 4 + len(DISTANCES) - 1 + len(POLAR) - 1


def _neighbours(
    packed: PackedCrystals, starts: Int64[np.ndarray, " B"]
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    """Atoms, their neighbours within reach (any image), and the distances in Å."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    firsts, seconds, distances = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)]
    sound = cells_sound(packed, Geometry())
    for crystal, start, possible in zip(packed, starts.tolist(), sound.tolist(), strict=True):
        if not possible:  # thousands of images, or none: as if nothing were near
            continue
        assert crystal is not None, "an empty cell is not sound"
        lattice = np.ascontiguousarray(crystal.lattice)
        places = np.ascontiguousarray(crystal.frac % 1 @ lattice)
        periodic = np.array([1, 1, 1], dtype=np.int64)
        first, second, _, distance = find_points_in_spheres(places, places, REACH, periodic, lattice, 1e-3)
        apart = distance > 1e-3  # an atom is not its own neighbour
        firsts.append(first[apart] + start)
        seconds.append(second[apart] + start)
        distances.append(distance[apart])
    first, second = (np.concatenate(parts).astype(np.int64) for parts in (firsts, seconds))  # they come as long long
    return first, second, np.concatenate(distances)


def _spread_over(values: np.ndarray, starts: np.ndarray, count: np.ndarray) -> Float64[np.ndarray, "B 4"]:
    """Mean, spread, least and greatest of the atoms' values of each crystal."""
    mean = np.add.reduceat(values, starts) / count
    spread = np.sqrt(np.maximum(np.add.reduceat(values**2, starts) / count - mean**2, 0))
    return np.stack([mean, spread, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)], axis=1)


def _histogram(
    values: np.ndarray, edges: np.ndarray, weight: np.ndarray, owner: np.ndarray, crystals: int
) -> np.ndarray:
    """For each crystal the weights of its values between two edges each."""
    bin_ = np.searchsorted(edges, values, side="right") - 1
    inside = (bin_ >= 0) & (bin_ < len(edges) - 1)
    cell = owner[inside] * (len(edges) - 1) + bin_[inside]
    return np.bincount(cell, weight[inside], crystals * (len(edges) - 1)).reshape(crystals, -1)
