"""Neighbour lists of a batch of crystals without building structure objects.

Shapes: B crystals, N atoms of all of them, E directed edges, U undirected edges, A angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal import Crystal

SAME_SITE = 1e-8
"""Å. Two points nearer than this are one point: the atom itself in its own neighbour list."""


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Directed edges within a cutoff; atoms are numbered through the batch.

    center, neighbor: atoms; image: lattice vectors to add to the neighbour's position; distance: Å;
    crystal: to which crystal an edge belongs.
    """

    center: Int64[np.ndarray, " E"]
    neighbor: Int64[np.ndarray, " E"]
    image: Int64[np.ndarray, "E 3"]
    distance: Float64[np.ndarray, " E"]
    crystal: Int64[np.ndarray, " E"]


def neighbor_list(crystals: Sequence[Crystal], cutoff: float) -> NeighborList:
    """All pairs within `cutoff` Å, each in both directions, self-images included."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    periodic = np.ones(3, dtype=np.int64)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    offset = 0
    for index, crystal in enumerate(crystals):
        cart = np.ascontiguousarray(crystal.frac @ crystal.lattice)
        center, neighbor, image, distance = find_points_in_spheres(
            cart, cart, r=cutoff, pbc=periodic, lattice=np.ascontiguousarray(crystal.lattice), tol=SAME_SITE
        )
        keep = distance > SAME_SITE
        center, neighbor = center[keep] + offset, neighbor[keep] + offset
        parts.append((center, neighbor, image[keep], distance[keep], np.full(len(center), index)))
        offset += len(crystal)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    center, neighbor, image, distance, owner = columns
    return NeighborList(
        center.astype(np.int64),
        neighbor.astype(np.int64),
        np.rint(image).astype(np.int64).reshape(-1, 3),
        distance.astype(np.float64),
        owner.astype(np.int64),
    )


def pair_up(edges: NeighborList) -> tuple[NeighborList, Int64[np.ndarray, " E"], Int64[np.ndarray, " U"]]:
    """Match each directed edge with its reverse.

    Returns the edges without those whose reverse fell outside the cutoff by rounding, the undirected edge of
    each directed one, and one directed edge of each undirected one.
    """
    # The canonical direction has the smaller atom first; between images of one atom, the first nonzero image
    # component decides.
    image = edges.image
    sign = np.sign(image)
    leading = np.where(sign[:, 0] != 0, sign[:, 0], np.where(sign[:, 1] != 0, sign[:, 1], sign[:, 2]))
    flip = (edges.center > edges.neighbor) | ((edges.center == edges.neighbor) & (leading < 0))
    first = np.where(flip, edges.neighbor, edges.center)
    second = np.where(flip, edges.center, edges.neighbor)
    canonical = np.where(flip[:, None], -image, image)
    order = np.lexsort((flip, canonical[:, 2], canonical[:, 1], canonical[:, 0], second, first))
    keys = np.column_stack([first, second, canonical])[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    group = np.cumsum(new) - 1
    counts = np.bincount(group) if len(group) else np.zeros(0, np.int64)
    assert (counts <= 2).all(), "an edge occurs twice"
    complete = counts[group] == 2 if len(group) else np.zeros(0, bool)
    kept = order[complete]
    undirected_sorted = np.arange(len(kept)) // 2
    # Back to the order of the neighbour list, which keeps the edges of an atom together.
    place = np.argsort(kept, kind="stable")
    kept, undirected = kept[place], undirected_sorted[place]
    representative = np.full(len(kept) // 2, -1, dtype=np.int64)
    representative[undirected[::-1]] = np.arange(len(kept))[::-1]
    chosen = NeighborList(
        edges.center[kept], edges.neighbor[kept], edges.image[kept], edges.distance[kept], edges.crystal[kept]
    )
    return chosen, undirected.astype(np.int64), representative


def angles(edges: NeighborList, cutoff: float) -> tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " A"]]:
    """All ordered pairs of different directed edges of one centre, both no longer than `cutoff`."""
    short = np.flatnonzero(edges.distance <= cutoff)
    short = short[np.argsort(edges.center[short], kind="stable")]
    degree = np.bincount(edges.center[short]) if len(short) else np.zeros(0, np.int64)
    degree = degree[degree > 0]
    starts = np.repeat(np.cumsum(degree) - degree, degree)
    width = np.repeat(degree, degree)
    left = np.repeat(np.arange(len(short)), width)
    within = np.arange(len(left)) - np.repeat(np.cumsum(width) - width, width)
    right = starts[left] + within
    different = left != right
    return short[left[different]].astype(np.int64), short[right[different]].astype(np.int64)
