"""The network that a configuration asks for."""

from __future__ import annotations

from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sites import SiteFormer


def build_model(config: ModelConfig) -> CrystalFormer:
    """A network with fresh weights, in training mode.

    >>> build_model(ModelConfig(layout="sites", layers=2, heads=2, head_size=8, width=16)).positions_of_longest
    43
    """
    return SiteFormer(config) if config.layout == "sites" else CrystalFormer(config)
