"""From a configuration to a potential; each vendor is imported only when it is asked for."""

from __future__ import annotations

from crystalforge.potentials.base import Potential
from crystalforge.potentials.config import (
    CHGNetConfig,
    DIEPConfig,
    MACEConfig,
    MatGLConfig,
    OrbConfig,
    PotentialConfig,
    SevenNetConfig,
)


def load(config: PotentialConfig) -> Potential:
    """Load the potential; raises InputError with the install command when its package is missing."""
    match config:
        case CHGNetConfig():
            from crystalforge.potentials.chgnet import CHGNetPotential

            return CHGNetPotential(config)
        case SevenNetConfig():
            from crystalforge.potentials.sevennet import SevenNetPotential

            return SevenNetPotential(config)
        case DIEPConfig():
            from crystalforge.potentials.diep import DIEPPotential

            return DIEPPotential(config)
        case MatGLConfig():
            from crystalforge.potentials.matgl import MatGLPotential

            return MatGLPotential(config)
        case OrbConfig():
            from crystalforge.potentials.orb import OrbPotential

            return OrbPotential(config)
        case MACEConfig():
            from crystalforge.potentials.mace import MACEPotential

            return MACEPotential(config)
