"""Cells: six parameters <-> three row vectors, what a crystal system prescribes, and what is no cell at all.

Parameters are a, b, c in Å (or any length) and alpha, beta, gamma in radians. Row vectors lie as pymatgen lays them:
c along z, a in the xz plane. Shape: B cells.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int

from crystalforge.crystal import wyckoff

# Volume of the cell over that of a brick with the same edges. Real cells stay above 0.1; below 1e-3 the third edge is
# within 0.06 degrees of the plane of the others, where the matrix is singular for every practical purpose.
MIN_VOLUME_RATIO = 1e-3


def symmetrize(spacegroup: Int[np.ndarray, " B"], parameters: Float64[np.ndarray, "B 6"]) -> Float64[np.ndarray, "B 6"]:
    """The parameters with everything that the crystal system prescribes put in place of what was given.

    Only the components that `wyckoff.lattice_free` names are read: b follows a in tetragonal, trigonal, hexagonal and
    cubic groups, c follows a in cubic ones, prescribed angles are exact.
    """
    result = parameters.copy()
    free = wyckoff.lattice_free()[spacegroup - 1]
    result[:, 1:3] = np.where(free[:, 1:3], result[:, 1:3], result[:, :1])
    angles = np.full((len(result), 3), np.pi / 2)
    angles[(spacegroup >= 143) & (spacegroup <= 194), 2] = 2 * np.pi / 3
    result[:, 3:] = np.where(free[:, 3:], result[:, 3:], angles)
    return result


def averaged(spacegroup: Int[np.ndarray, " B"], parameters: Float64[np.ndarray, "B 6"]) -> Float64[np.ndarray, "B 6"]:
    """The parameters with edges that the crystal system makes equal replaced by their mean."""
    result = parameters.copy()
    cubic, uniaxial = spacegroup >= 195, (spacegroup >= 75) & (spacegroup < 195)
    result[cubic, :3] = result[cubic, :3].mean(axis=1, keepdims=True)
    result[uniaxial, :2] = result[uniaxial, :2].mean(axis=1, keepdims=True)
    return result


def volume_ratio(parameters: Float64[np.ndarray, "B 6"]) -> Float64[np.ndarray, " B"]:
    """Cell volume over a b c; 0 where the three angles cannot meet in a corner."""
    with np.errstate(invalid="ignore"):  # infinite angles give NaN, which counts as no cell
        cosines = np.cos(parameters[:, 3:])
    square = 1 + 2 * cosines.prod(axis=1) - (cosines**2).sum(axis=1)
    return np.sqrt(np.maximum(np.nan_to_num(square), 0))


def is_cell(parameters: Float64[np.ndarray, "B 6"]) -> Bool[np.ndarray, " B"]:
    """True where all six are finite, lengths are positive, angles lie between 0 and pi and the volume is not nil."""
    finite = np.isfinite(parameters).all(axis=1)
    lengths = (parameters[:, :3] > 0).all(axis=1)
    angles = ((parameters[:, 3:] > 0) & (parameters[:, 3:] < np.pi)).all(axis=1)
    return finite & lengths & angles & (volume_ratio(parameters) >= MIN_VOLUME_RATIO)


def to_matrix(parameters: Float64[np.ndarray, "B 6"]) -> Float64[np.ndarray, "B 3 3"]:
    """Row vectors of cells that pass `is_cell`. Right angles give exact zeros."""
    a, b, c, alpha, beta, _ = parameters.T
    right = np.isclose(parameters[:, 3:], np.pi / 2, rtol=0, atol=1e-12)
    cos_alpha, cos_beta, cos_gamma = np.where(right, 0.0, np.cos(parameters[:, 3:])).T
    sin_alpha, sin_beta = np.sin(alpha), np.sin(beta)
    cos_star = np.clip((cos_gamma - cos_alpha * cos_beta) / (sin_alpha * sin_beta), -1, 1)
    matrix = np.zeros((len(parameters), 3, 3))
    matrix[:, 0, 0] = a * sin_beta
    matrix[:, 0, 2] = a * cos_beta
    matrix[:, 1, 0] = b * sin_alpha * cos_star
    matrix[:, 1, 1] = b * sin_alpha * np.sqrt(1 - cos_star**2)
    matrix[:, 1, 2] = b * cos_alpha
    matrix[:, 2, 2] = c
    return matrix


def from_matrix(matrix: Float64[np.ndarray, "B 3 3"]) -> Float64[np.ndarray, "B 6"]:
    """Parameters of cells given by row vectors."""
    lengths = np.linalg.norm(matrix, axis=2)
    unit = matrix / lengths[:, :, None]
    cosines = np.stack([(unit[:, i] * unit[:, j]).sum(axis=1) for i, j in ((1, 2), (0, 2), (0, 1))], axis=1)
    return np.concatenate([lengths, np.arccos(np.clip(cosines, -1, 1))], axis=1)
