"""Shape of the network. Defaults are the published model: 4,833,575 parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.crystal import ATOM_TYPES, MAX_SITES, WYCKOFF_TYPES


class ModelConfig(BaseModel):
    """Hyper-parameters of the crystal model (CrystalFormer, arXiv 2403.15734; full size as in arXiv 2504.02367).

    >>> ModelConfig(layers=4, heads=4).layers
    4
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["tokens", "sites"] = Field(
        default="tokens", description="tokens: five tokens a site, as published; sites: two a site, see `model.sites`"
    )
    layers: int = Field(default=16, ge=1, description="transformer blocks")
    heads: int = Field(default=16, ge=1, description="attention heads")
    head_size: int = Field(default=64, ge=2, multiple_of=2, description="channels of one head")
    width: int = Field(default=64, ge=4, description="channels of the residual stream")
    embedding: int = Field(default=32, ge=1, description="channels of the space-group, Wyckoff and element embeddings")
    widening: int = Field(default=4, ge=1, description="hidden channels of a block's MLP, as a multiple of width")
    norm: Literal["layer", "rms"] = Field(default="layer", description="normalisation: layer as published, or RMS")
    gated: bool = Field(
        default=False, description="MLPs with a SiLU gate, of two thirds of the hidden channels, instead of GELU"
    )
    coord_head: Literal["published", "anchored"] = Field(
        default="published",
        description="anchored: a coordinate's components start spread over the cell, and their concentrations are "
        "exponentials of the network's output, not softplus",
    )
    first_wyckoff_hidden: int = Field(
        default=256, ge=0, description="hidden channels of the first-letter head; 0: a table"
    )
    coord_frequencies: int = Field(default=5, ge=1, description="Fourier frequencies of a coordinate's encoding")
    coord_components: int = Field(default=16, ge=1, description="von Mises components of a coordinate")
    lattice_components: int = Field(default=4, ge=1, description="Gaussian components of the lattice")
    max_sites: int = Field(
        default=MAX_SITES, ge=2, description="site slots; one stays empty, so a crystal has one site less"
    )
    atom_types: int = Field(default=ATOM_TYPES, ge=2, le=ATOM_TYPES)
    wyckoff_types: int = Field(default=WYCKOFF_TYPES, ge=WYCKOFF_TYPES, le=WYCKOFF_TYPES)
    dropout: float = Field(default=0.1, ge=0, lt=1, description="after attention and MLP, in training")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="on attention weights, in training")

    @property
    def hidden(self) -> int:
        """Hidden channels of a block's MLP: with a gate two thirds, in eights, so that it has as many weights."""
        full = self.widening * self.width
        return max(8, round(full / 12) * 8) if self.gated else full

    @property
    def output_size(self) -> int:
        """Channels of the output head: the widest of element+lattice, coordinate and Wyckoff parameters."""
        k, c = self.lattice_components, self.coord_components
        return max(self.atom_types + k + 12 * k, 3 * c, self.wyckoff_types)
