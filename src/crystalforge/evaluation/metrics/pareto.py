"""Two properties that are wanted at once: which columns they are, and which crystals are best in one of their ways."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

GAP, CONSTANT = "band_gap", "dielectric_constant"  # columns; eV, and the mean eigenvalue of the tensor


def pareto_front(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which points no other point beats in both values.

    >>> pareto_front(np.array([1.0, 2.0, 1.0]), np.array([2.0, 1.0, 1.0])).tolist()
    [True, True, False]
    """
    front = np.zeros(len(first), dtype=bool)
    best = -np.inf
    for row in np.lexsort((-second, -first)):
        if second[row] > best:
            front[row], best = True, second[row]
    return front
