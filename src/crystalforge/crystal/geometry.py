"""Whether atoms and cell of a crystal are possible at all: distances, volume, shape; vectorised over a batch.

Cheap enough for every crystal that is drawn, judged or trained on. The sampler refuses by it (`model.sampling.valid`),
the rewards' guards and the evaluation's validity measure with it.

Shapes: B crystals, N their atoms laid end to end, P pairs of atoms of one crystal, M images of a cell.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field

from crystalforge.crystal.crystal import Crystal, PackedCrystals
from crystalforge.crystal.orbits import primitive_bases, to_packed
from crystalforge.crystal.tokens import Tokens
from crystalforge.crystal.wyckoff import multiplicity

FARTHEST_IMAGE = 1e6
"""Any image of an atom will do, but beyond this many cells away rounding eats its position (1e-10 of a cell)."""
AT_ONCE = 1 << 18  # vectors between atoms and images computed together: 6 MB


class Geometry(BaseModel):
    """What the distances and the cell of a crystal must satisfy.

    The defaults refuse what no force field and no calculation can start from. They imply the structure validity of
    CDVAE (arXiv 2110.06197: 0.5 Å between sites, 0.1 Å^3 for the cell). Of MP-20's crystals one in a thousand has a
    bond below 0.7.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_distance: float = Field(default=0.5, ge=0, description="Å between two atoms, images included")
    min_bond: float | None = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="least distance of two atoms as a part of their summed covalent radii; None: not asked",
    )
    volume_per_atom: tuple[float, float] = Field(default=(2.0, 500.0), description="Å^3 allowed, least and most")
    min_height: float = Field(default=1.0, gt=0, description="Å between opposite faces of the cell")
    max_length: float = Field(default=200.0, gt=0, description="Å, longest lattice vector")


def possible(tokens: Tokens, geometry: Geometry) -> Bool[np.ndarray, " B"]:
    """Whether each token crystal can be built and meets `geometry`; cell limits are those of its primitive cell.

    All atoms of a site have the same surroundings, so distances are measured from one atom of each site: the work
    grows with sites times atoms.
    """
    packed = to_packed(tokens, primitive=True)
    sound = cells_sound(packed, geometry)
    rows = np.flatnonzero(sound)
    sound[rows] = atoms_apart(packed.take(rows), geometry, centers=_first_of_each_site(tokens[rows]))
    return sound


def atoms_apart(
    packed: PackedCrystals, geometry: Geometry, *, centers: Int64[np.ndarray, " C"] | None = None
) -> Bool[np.ndarray, " B"]:
    """Whether all distances of each crystal are within the limits; its cell must have passed `cells_sound`. centers: as
    for `nearest`."""
    apart = nearest(packed, geometry.min_distance, centers=centers) >= geometry.min_distance
    if geometry.min_bond is not None:
        radii = covalent_radii()[packed.numbers]
        apart &= nearest(packed, geometry.min_bond, radii=radii, centers=centers) >= geometry.min_bond
    return apart


def cells_sound(packed: PackedCrystals, geometry: Geometry) -> Bool[np.ndarray, " B"]:
    """Whether each cell has a shape and a volume within the limits; False where there is no atom or no number."""
    lattice, n_atoms = packed.lattice, packed.n_atoms
    with np.errstate(over="ignore", invalid="ignore"):  # a length that overflows is too long
        lengths = np.linalg.norm(lattice, axis=2).max(axis=1, initial=0)
    # Lengths first: the determinant of an absurd cell may overflow. A length that is no number fails here too.
    sane = (lengths <= geometry.max_length) & (n_atoms > 0)
    volume, heights = np.zeros(len(packed)), np.zeros(len(packed))
    volume[sane] = np.abs(np.linalg.det(lattice[sane]))
    heights[sane] = cell_heights(lattice[sane]).min(axis=1, initial=np.inf)
    per_atom = volume / np.maximum(n_atoms, 1)
    low, high = geometry.volume_per_atom
    return sane & (per_atom >= low) & (per_atom <= high) & (heights >= geometry.min_height)


def cell_heights(lattice: Float64[np.ndarray, "B 3 3"]) -> Float64[np.ndarray, "B 3"]:
    """Distances between opposite faces, Å: volume over the area of each face. Zero for a cell of no volume."""
    areas = np.linalg.norm(np.cross(np.roll(lattice, -1, axis=1), np.roll(lattice, -2, axis=1)), axis=2)
    volume = np.abs(np.linalg.det(lattice))
    return np.divide(volume[:, None], areas, out=np.zeros(areas.shape), where=areas > 0)


@cache
def covalent_radii() -> Float64[np.ndarray, " 119"]:
    """Å by atomic number: Cordero et al., Dalton Trans. 2008, 2832, as pymatgen has them; the few elements without a
    known radius get that of the last one with."""
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core.periodic_table import Element

    known = {Element(symbol).Z: float(radius) for symbol, radius in CovalentRadius.radius.items()}
    return np.array([known.get(z, known[max(known)]) for z in range(119)])


def shortest_bond(crystal: Crystal) -> float:
    """Least distance of two atoms, images included, as a part of the sum of their covalent radii; infinite where no two
    atoms are as close as that sum. Of MP-20's crystals one in a thousand is below 0.7, six in a thousand below 0.75."""
    packed = PackedCrystals.pack([crystal])
    return float(nearest(packed, 1.0, radii=covalent_radii()[packed.numbers])[0])


def nearest(
    packed: PackedCrystals,
    limit: float,
    *,
    radii: Float64[np.ndarray, " N"] | None = None,
    centers: Int64[np.ndarray, " C"] | None = None,
) -> Float64[np.ndarray, " B"]:
    """Shortest distance of two atoms of each crystal, periodic images included; exact below `limit`, infinite where
    nothing is nearer.

    In Å, or with `radii` (Å, of each atom) as a part of the two atoms' summed radii. centers: measure from these atoms
    only, which must stand for all of their crystal (one of each site). Cells must have a volume.

    A vector shorter than d has fractional components below d / height, so the images to look at are known; crystals
    that need the same ones are done together.
    """
    found = np.full(len(packed), np.inf)
    if not len(packed.numbers):
        return found
    half = np.full(len(packed.numbers), 0.5) if radii is None else radii
    atoms = packed.n_atoms.astype(np.int64)
    starts = np.cumsum(atoms) - atoms
    occupied = np.flatnonzero(atoms)
    cutoff = np.zeros(len(packed))
    cutoff[occupied] = 2 * limit * np.maximum.reduceat(half, starts[occupied])
    reach = np.zeros((len(packed), 3), dtype=np.int64)
    reach[occupied] = np.floor(cutoff[occupied, None] / cell_heights(packed.lattice[occupied]) + 0.5)
    owner = np.repeat(np.arange(len(packed)), atoms)
    chosen = np.arange(len(owner)) if centers is None else centers
    for size in np.unique(reach[occupied], axis=0):
        images = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in size), indexing="ij"), axis=-1).reshape(-1, 3)
        mine = chosen[(reach[owner[chosen]] == size).all(axis=1)]
        for part in _pieces(mine, atoms[owner[mine]] * len(images)):
            _look(found, packed, part, images, half, owner, starts, whole=centers is None)
    return np.where(found < limit, found, np.inf)


def _look(
    found: Float64[np.ndarray, " B"],
    packed: PackedCrystals,
    centers: Int64[np.ndarray, " C"],
    images: Int64[np.ndarray, "M 3"],
    half: Float64[np.ndarray, " N"],
    owner: Int64[np.ndarray, " N"],
    starts: Int64[np.ndarray, " B"],
    *,
    whole: bool,
) -> None:
    """Lower `found` to the least distance of `centers` to any atom. whole: all atoms are centres, half the pairs do."""
    count = packed.n_atoms[owner[centers]].astype(np.int64)
    first = np.repeat(centers, count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    second = starts[owner[first]] + within
    if whole:
        keep = second >= first
        first, second = first[keep], second[keep]
    crystal = owner[first]
    difference = packed.frac[first] - packed.frac[second]
    difference -= np.rint(difference)
    lattice = packed.lattice[crystal]
    vectors = np.einsum("pi,pij->pj", difference, lattice)
    shifts = np.einsum("mi,bij->bmj", images.astype(np.float64), packed.lattice)[crystal] if len(images) > 1 else 0.0
    square = ((vectors[:, None] + shifts) ** 2).sum(axis=2)
    itself = np.flatnonzero(first == second)
    square[itself, len(images) // 2] = np.inf  # the atom itself: the middle image is the one at 0
    distance = np.sqrt(square.min(axis=1)) / (half[first] + half[second])
    np.minimum.at(found, crystal, distance)


def _pieces(centers: Int64[np.ndarray, " C"], work: Int64[np.ndarray, " C"]) -> list[Int64[np.ndarray, " _"]]:
    """Consecutive centres whose work together is about `AT_ONCE`."""
    if not len(centers):
        return []
    return np.split(centers, np.flatnonzero(np.diff(np.cumsum(work) // AT_ONCE)) + 1)


def _first_of_each_site(tokens: Tokens) -> Int64[np.ndarray, " C"]:
    """Number of the first atom of each site among the atoms of `to_packed(tokens, primitive=True)`."""
    row, slot = np.nonzero(tokens.is_site)
    group = tokens.spacegroup.astype(np.int64)[row] - 1
    sizes = multiplicity()[group, tokens.wyckoff[row, slot]] // primitive_bases()[1][group]
    return (np.cumsum(sizes) - sizes).astype(np.int64)
