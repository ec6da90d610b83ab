"""Which potential, with which weights: the configuration that `potentials.load` understands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(default="cpu", description="torch device: cpu, cuda, cuda:1, mps")
    batch_atoms: int = Field(default=100, gt=0, description="atoms in one batch; bounds the memory, changes no value")


class CHGNetConfig(_Base):
    """CHGNet: weights come inside its wheel; energies are on the MP2020-corrected scale; Z <= 94."""

    kind: Literal["chgnet"] = "chgnet"
    model: Literal["0.3.0", "0.2.0", "r2scan"] = Field(default="0.3.0", description="which pretrained weights")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="arithmetic; float64 for references")


class SevenNetConfig(_Base):
    """SevenNet: weights come inside its wheel; energies are raw PBE(+U), MF-0's also r2SCAN; Z <= 94."""

    kind: Literal["sevennet"] = "sevennet"
    model: Literal["7net-0", "7net-l3i5", "7net-mf-0"] = Field(
        default="7net-0",
        description="which pretrained weights: 7net-0 (the fastest), 7net-l3i5 (the best), 7net-mf-0 (two functionals)",
    )
    functional: Literal["pbe", "r2scan"] = Field(
        default="pbe", description="what the energies stand for; r2scan: 7net-mf-0 only"
    )


class DIEPConfig(_Base):
    """DIEP: weights come inside its wheel, trained on MatPES-r2SCAN; Z <= 94."""

    kind: Literal["diep"] = "diep"
    dtype: Literal["float32", "float64"] = Field(
        default="float64", description="arithmetic; float32 is too coarse for its forces"
    )


class MatGLConfig(_Base):
    """A MatGL model from a local folder (model.json, model.pt, state.pt).

    A potential gives energies, forces and stresses; a formation-energy model gives energies on the scale
    `formation` and neither forces nor stress.
    """

    kind: Literal["matgl"] = "matgl"
    batch_atoms: int = Field(default=200, gt=0, description="atoms in one batch; bounds the memory, changes no value")
    path: Path = Field(description="the model's folder")
    state: int | None = Field(
        default=None, description="global state, e.g. the fidelity index of a multi-fidelity model"
    )
    scale: Literal["mp2020", "pbe", "formation"] | None = Field(
        default=None, description="what its energies are measured against; None: from what the folder holds"
    )
    aggregate: Literal["auto", "source", "destination"] = Field(
        default="auto",
        description="the node that messages are summed into; auto: destination for checkpoints of before matgl 3",
    )


class OrbConfig(_Base):
    """Orb v2 or v3, from a local checkpoint or downloaded."""

    kind: Literal["orb"] = "orb"
    model: str = Field(default="orb_v2", description="a function of orb_models.forcefield.pretrained, e.g. orb_v2")
    path: Path | None = Field(default=None, description="local weights; None downloads them")
    scale: Literal["mp2020", "pbe"] = Field(
        default="pbe",
        description="what the energies are measured against; the models for MPtrj + Alexandria give raw PBE",
    )


class MACEConfig(_Base):
    """MACE, from a local file or one of the names that `mace_mp` downloads."""

    kind: Literal["mace"] = "mace"
    model: str = Field(default="medium-mpa-0", description="name known to mace_mp, or a path")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="arithmetic")
    scale: Literal["mp2020", "pbe"] = Field(default="pbe", description="what the energies are measured against")


PotentialConfig = Annotated[
    CHGNetConfig | SevenNetConfig | DIEPConfig | MatGLConfig | OrbConfig | MACEConfig, Field(discriminator="kind")
]
