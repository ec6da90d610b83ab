"""The volume of a crystal: as bond lengths predict it, and as a potential prefers it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.data.substitution import Prototype
from crystalforge.potentials.base import Potential

SCALES = (1.0, 0.90, 1.11)  # of the volume, the three points of the first parabola in ln V
ROUNDS = 3  # parabolas at most
SAME_VOLUME = 0.02  # in ln V: a minimum this near to a point already known is that point (about 2 meV/atom)
LARGEST_STEP = 0.25  # in ln V beyond the points known: a parabola is not trusted further out
DECIMALS = 8  # of stored lattice vectors (Å) and coordinates: energies belong to what is stored


def at_predicted_volume(prototype: Prototype, symbols: tuple[str, ...]) -> Crystal:
    """The decoration at the data-lattice scheme's volume; the original one at its own."""
    from pymatgen.analysis.structure_prediction.volume_predictor import DLSVolumePredictor

    structure = prototype.decorated(symbols)
    if symbols != tuple(prototype.elements):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says so whenever it falls back on atomic radii
            structure.scale_lattice(DLSVolumePredictor().predict(structure))
    return Crystal.from_structure(structure)


def at_best_volume(
    crystals: Sequence[Crystal], potential: Potential
) -> tuple[list[Crystal], Float64[np.ndarray, " B"]]:
    """Each crystal scaled to the lowest energy found, and that energy in eV/atom (inf: no energy at all).

    Parabolas in ln V through the three points around the lowest: 3 energies, then one a round until it stays.
    """
    size = len(crystals)
    atoms = np.array([len(crystal) for crystal in crystals])
    log_v = np.full((size, len(SCALES) + ROUNDS), np.nan)
    energy = np.full(log_v.shape, np.inf)

    def evaluate(column: int, rows: Float64[np.ndarray, " n"] | np.ndarray, value: np.ndarray) -> None:
        log_v[rows, column] = value
        trial = [scaled(crystals[row], np.exp(x)) for row, x in zip(rows, value, strict=True)]
        found = potential.predict(trial).energy / atoms[rows]
        energy[rows, column] = np.where(np.isfinite(found), found, np.inf)

    for column, scale in enumerate(SCALES):
        evaluate(column, np.arange(size), np.full(size, np.log(scale)))
    active = np.flatnonzero(np.isfinite(energy[:, : len(SCALES)]).all(axis=1))
    for column in range(len(SCALES), len(SCALES) + ROUNDS):
        proposals = np.array([_minimum(log_v[row, :column], energy[row, :column]) for row in active])
        known = log_v[active, :column]
        new = np.nanmin(np.abs(known - proposals[:, None]), axis=1) > SAME_VOLUME if len(active) else np.zeros(0, bool)
        active, proposals = active[new], proposals[new]
        if not len(active):
            break
        evaluate(column, active, proposals)
    best = energy.argmin(axis=1)
    rows = np.arange(size)
    factor = np.exp(np.where(np.isfinite(log_v[rows, best]), log_v[rows, best], 0.0))
    return [scaled(crystal, scale) for crystal, scale in zip(crystals, factor, strict=True)], energy[rows, best]


def scaled(crystal: Crystal, factor: float) -> Crystal:
    """The crystal with its volume multiplied by `factor`, rounded as it will be stored."""
    return Crystal.of(
        np.round(crystal.lattice * factor ** (1 / 3), DECIMALS), crystal.numbers, np.round(crystal.frac % 1.0, DECIMALS)
    )


def _minimum(x: Float64[np.ndarray, " p"], energy: Float64[np.ndarray, " p"]) -> float:
    """ln V of the minimum of the parabola through the lowest point and its neighbours; downhill where there is none."""
    usable = np.isfinite(x) & np.isfinite(energy)
    order = np.argsort(x[usable])
    x, energy = x[usable][order], energy[usable][order]
    lowest = int(np.clip(energy.argmin(), 1, len(x) - 2))
    near = slice(lowest - 1, lowest + 2)
    curvature, slope, _ = np.polyfit(x[near] - x[lowest], energy[near], 2)
    if curvature <= 0:
        step = np.inf if slope < 0 else -np.inf
    else:
        step = -slope / (2 * curvature)
    return float(np.clip(x[lowest] + step, x[0] - LARGEST_STEP, x[-1] + LARGEST_STEP))
