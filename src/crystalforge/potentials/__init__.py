"""What predicts energies and properties: CHGNet, SevenNet, DIEP, MatGL, Orb and MACE behind one protocol."""

from crystalforge.potentials.base import Potential, Prediction, Scale
from crystalforge.potentials.config import (
    CHGNetConfig,
    DIEPConfig,
    MACEConfig,
    MatGLConfig,
    OrbConfig,
    PotentialConfig,
    SevenNetConfig,
)
from crystalforge.potentials.load import load

__all__ = [
    "CHGNetConfig",
    "DIEPConfig",
    "MACEConfig",
    "MatGLConfig",
    "OrbConfig",
    "Potential",
    "PotentialConfig",
    "Prediction",
    "Scale",
    "SevenNetConfig",
    "load",
]
