"""From a configuration to a potential; each vendor is imported only when it is asked for."""

from __future__ import annotations

from crystalforge.potentials.base import Potential
from crystalforge.potentials.config import CHGNetConfig, PotentialConfig


def load(config: PotentialConfig) -> Potential:
    """Load the potential; raises InputError with the install command when its package is missing."""
    if isinstance(config, CHGNetConfig):
        from crystalforge.potentials.chgnet import CHGNetPotential

        return CHGNetPotential(config)
    raise AssertionError(config)
