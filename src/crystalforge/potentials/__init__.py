"""What predicts energies and properties: CHGNet, MatGL, Orb and MACE behind one protocol."""

from crystalforge.potentials.base import Potential, Prediction, Scale
from crystalforge.potentials.config import (
    CHGNetConfig,
    MACEConfig,
    MatGLConfig,
    OrbConfig,
    PotentialConfig,
)
from crystalforge.potentials.load import load

__all__ = [
    "CHGNetConfig",
    "MACEConfig",
    "MatGLConfig",
    "OrbConfig",
    "Potential",
    "PotentialConfig",
    "Prediction",
    "Scale",
    "load",
]
