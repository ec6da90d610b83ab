"""Least distances between the atoms of one crystal, pair by pair (`geometry.nearest`: of many crystals, one each).

Shapes: n atoms.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal.geometry import cell_heights

REACH = 2.7  # Å: half the sum of the two largest covalent radii
ROWS = 256  # atoms compared with all others at once: bounds the memory
FARTHEST = 30  # cells; a cell thinner than REACH / FARTHEST is no cell of a crystal


def shortest_distances(
    lattice: Float64[np.ndarray, "3 3"], frac: Float64[np.ndarray, "n 3"], reach: float = REACH
) -> Float64[np.ndarray, "n n"]:
    """Least distance in Å between each atom and all images of each other one (of itself, on the diagonal).

    Exact for distances up to `reach`; larger ones are upper bounds, or infinite.
    """
    spacing = cell_heights(lattice[None])[0]
    # A difference within half a cell of zero can come nearer than `reach` only by this many cells.
    span = np.minimum(np.floor(reach / spacing + 0.5), FARTHEST).astype(int)
    steps = [np.array(shift) - span for shift in np.ndindex(*(2 * span + 1).tolist())]
    square = np.empty((len(frac), len(frac)))
    for first in range(0, len(frac), ROWS):
        rows = slice(first, first + ROWS)
        difference = frac[rows, None] - frac[None]
        difference -= np.rint(difference)
        cartesian = difference @ lattice
        part = np.einsum("ijk,ijk->ij", cartesian, cartesian)
        own = np.arange(len(part))
        part[own, first + own] = np.inf
        for step in steps:
            if step.any():
                moved = cartesian + step @ lattice
                np.minimum(part, np.einsum("ijk,ijk->ij", moved, moved), out=part)
        square[rows] = part
    return np.sqrt(square)
