"""Is a crystal at rest in a minimum? Moved a little and relaxed again it comes back, or it falls.

A relaxation never breaks the symmetry that it begins with, and generated crystals begin with much of it: many come to
rest on saddles, where forces vanish because of the symmetry alone. What is not seen: a fall that needs a larger cell
than the primitive one, and one so slow at its beginning that all forces stay below the relaxation's limit.

Shapes: n atoms.
"""

from __future__ import annotations

import numpy as np

from crystalforge.common.seeds import derived
from crystalforge.crystal import Crystal

FALL = 2e-3
"""eV/atom that count as a fall: relaxations that end at forces of 0.05 eV/Å agree that well."""

SYMPREC = 0.1
"""Å within which the symmetry of a crystal that fell is looked for: forces alone made it symmetric, and those that a
relaxation leaves are worth some hundredths of an Å."""


def shaken(crystal: Crystal, amplitude: float, *, seed: int, index: int) -> Crystal:
    """The crystal with all atoms and its cell moved at random; what comes depends on seed and `index` alone.

    amplitude: standard deviation, Å, of each coordinate of the n atoms; the cell is strained so much that distances of
    (volume per atom)^(1/3) change by the like.

    >>> salt = Crystal.of(np.eye(3) * 4, [55, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> np.abs(shaken(salt, 0.03, seed=0, index=7).lattice - salt.lattice).max() < 0.2
    True
    """
    rng = np.random.default_rng(derived(seed, f"shake {index}"))
    moves = amplitude * rng.standard_normal(crystal.frac.shape)
    strain = amplitude / (crystal.volume / len(crystal)) ** (1 / 3) * rng.standard_normal((3, 3))
    lattice = crystal.lattice @ (np.eye(3) + (strain + strain.T) / 2)
    return Crystal(lattice, crystal.numbers, crystal.frac + moves @ np.linalg.inv(lattice))
