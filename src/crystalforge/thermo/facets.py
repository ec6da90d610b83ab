"""The convex hull of one chemical system as a list of planes.

Energy against composition is a convex, piecewise linear function. A facet of the lower hull is a plane: it
gives each element a chemical potential, E(x) = mu . x, and it lies on or below all phases. The hull is the
highest of the planes, so E_hull(x) = max over facets of mu . x, and a lookup is one matrix-vector product: no
search for the simplex that holds the composition. The numbers are those of pymatgen's PhaseDiagram (Ong et
al., Chem. Mater. 20, 1798 (2008)).

Shapes: d elements of the system, P phases, F facets, Q queries. Units: eV/atom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

MAX_FACET_ELEMENTS = 6
"""Beyond this many elements the facets of a hull grow out of hand; a linear program per query takes over."""

FORMATION_TOLERANCE = 1e-11
"""eV/atom. A compound must lie below the line between the elements by more than rounding to shape the hull.
"""

SUPPORT_TOLERANCE = 1e-7
"""eV/atom that a phase may lie below a facet by rounding. More means that the facet comes from a degenerate
simplex; ten times below the accuracy promised for the hull."""

SMALLEST_SIMPLEX = 1e-14
"""Volume, as a part of the whole composition space, below which a simplex has no chemical potentials to give.
"""

SMALLEST_SHARE = 1e-6
"""Part of the atoms below which a phase takes no part in a decomposition."""

COVER_TOLERANCE = 1e-9
"""By how much the facets' volumes may miss the volume of the composition space. What is missing is left to
the linear program.
"""


class SystemHull:
    """Lower hull of the phases of one chemical system.

    fractions: atomic fractions, rows add up to 1; energy: per atom. Every element must be present as a pure
    phase.
    """

    def __init__(self, fractions: Float64[np.ndarray, "P d"], energy: Float64[np.ndarray, " P"]) -> None:
        d = fractions.shape[1]
        terminal = np.full(d, np.inf)
        pure = fractions.max(axis=1) == 1.0
        np.minimum.at(terminal, fractions[pure].argmax(axis=1), energy[pure])
        assert np.isfinite(terminal).all(), "each element needs a pure phase"
        formation = energy - fractions @ terminal
        below = ~pure & (formation < -FORMATION_TOLERANCE)
        self._terminal = terminal
        self._fractions = np.concatenate([np.eye(d), fractions[below]])
        self._formation = np.concatenate([np.zeros(d), formation[below]])
        self.n_compounds = int((~pure).sum())
        self.n_full = int((fractions > 0).all(axis=1).sum())
        self.facets: Float64[np.ndarray, "F d"] | None = None
        if d <= MAX_FACET_ELEMENTS and (facets := _facets(self._fractions, self._formation)) is not None:
            self.facets = facets + terminal

    def energy(self, fractions: Float64[np.ndarray, "Q d"]) -> Float64[np.ndarray, " Q"]:
        """Energy of the hull at the given compositions, eV/atom."""
        if self.facets is not None:
            return (fractions @ self.facets.T).max(axis=1)
        return np.array([self._program(row) for row in fractions]) + fractions @ self._terminal

    def decomposition(self, fractions: Float64[np.ndarray, " d"]) -> list[tuple[Float64[np.ndarray, " d"], float]]:
        """The phases on the hull that a composition falls apart into: (atomic fractions, share of the atoms)."""
        shares = self._mixture(fractions).x
        return [(self._fractions[row], float(shares[row])) for row in np.flatnonzero(shares > SMALLEST_SHARE)]

    def _program(self, fractions: Float64[np.ndarray, " d"]) -> float:
        """Cheapest mixture of phases with this composition: the same hull, as a linear program."""
        return float(self._mixture(fractions).fun)

    def _mixture(self, fractions: Float64[np.ndarray, " d"]) -> Any:
        from scipy.optimize import linprog

        result = linprog(self._formation, A_eq=self._fractions.T, b_eq=fractions, method="highs")
        assert result.status == 0, result.message
        return result


def _facets(
    fractions: Float64[np.ndarray, "P d"], energy: Float64[np.ndarray, " P"]
) -> Float64[np.ndarray, "F d"] | None:
    """Chemical potentials of the facets of the lower hull, energies being relative to the elements.

    None when the facets found do not tile the whole composition space, which happens with near-degenerate
    phases.
    """
    d = fractions.shape[1]
    if len(fractions) == d:  # no compound: one plane through the elements
        return np.zeros((1, d))
    if d == 2:
        return _facets_binary(fractions, energy)
    from scipy.spatial import ConvexHull, QhullError

    # Composition without the first element, then energy. A point far above closes the hull from the top, so
    # that there is always a body with volume, and its facets are then dropped.
    points = np.column_stack([fractions[:, 1:], energy])
    lid = np.append(np.full(d - 1, 1.0 / d), 1.0 - 2.0 * energy.min())
    try:
        hull = ConvexHull(np.vstack([points, lid]), qhull_options="Qt Pp" if d < 5 else "Qt Qx Pp")
    except QhullError:
        return None
    simplices = hull.simplices[(hull.simplices < len(points)).all(axis=1)]
    volume = np.abs(np.linalg.det(fractions[simplices]))
    simplices, volume = simplices[volume > SMALLEST_SIMPLEX], volume[volume > SMALLEST_SIMPLEX]
    planes = np.linalg.solve(fractions[simplices], energy[simplices][..., None])[..., 0]
    supports = (planes @ fractions.T <= energy + SUPPORT_TOLERANCE).all(axis=1)
    if abs(volume[supports].sum() - 1.0) > COVER_TOLERANCE:
        return None
    return np.unique(planes[supports].round(13), axis=0)


def _facets_binary(
    fractions: Float64[np.ndarray, "P 2"], energy: Float64[np.ndarray, " P"]
) -> Float64[np.ndarray, "F 2"]:
    """Andrew's monotone chain: the lower hull of points on a line, without calling qhull."""
    x = fractions[:, 1]
    chain: list[int] = []
    for point in np.lexsort((energy, x)).tolist():
        if chain and x[point] == x[chain[-1]]:
            continue
        while len(chain) > 1:
            a, b = chain[-2], chain[-1]
            turn = (x[b] - x[a]) * (energy[point] - energy[a]) - (energy[b] - energy[a]) * (x[point] - x[a])
            if turn > 0:
                break
            chain.pop()
        chain.append(point)
    left, right = np.array(chain[:-1]), np.array(chain[1:])
    slope = (energy[right] - energy[left]) / (x[right] - x[left])
    at_zero = energy[left] - slope * x[left]
    return np.column_stack([at_zero, at_zero + slope])
