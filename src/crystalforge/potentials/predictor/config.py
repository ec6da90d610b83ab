"""What a property predictor learns, and from what; apart from its training, so that reading it does not load torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

VOIGT_COLUMNS = ("eps_xx", "eps_yy", "eps_zz", "eps_yz", "eps_xz", "eps_xy")


class PredictorConfig(BaseModel):
    """What to learn from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(description="parquet or CSV: lattice, atomic_numbers, frac_coords, or cif, or poscar; targets")
    extra: tuple[Path, ...] = Field(
        default=(),
        description="further tables for the training split alone, as `export-training-set` writes them; rows of a "
        "composition that is in val or test are left out",
    )
    targets: tuple[str, ...] = Field(default=VOIGT_COLUMNS, min_length=1, description="columns to predict")
    bounds: tuple[float, float] | None = Field(
        default=(-10.0, 100.0), description="a row with a target outside is left out; None: keep all"
    )
    fractions: tuple[float, float, float] = Field(default=(0.8, 0.1, 0.1), description="train, val, test")
    split: Literal["random", "composition"] = Field(
        default="random",
        description="random: row by row, as in the paper; composition: by a hash of seed and reduced formula, so that "
        "polymorphs share a split, and tables that overlap agree on it",
    )
    initial: Path | None = Field(
        default=None,
        description="folder of a MatGL M3GNet (such as a formation-energy model) whose weights, but for the last "
        "layers, are the start; `units`, `blocks` and `cutoff` are then its own",
    )
    scaling: Literal["together", "each"] = Field(
        default="together",
        description="together: one scale for all targets, which is the plain L1 loss up to a factor; each: every "
        "target by its own spread, for targets of different units",
    )
    epochs: int = Field(default=100, gt=0, description="passes over the training split")
    batch_size: int = Field(default=64, gt=0, description="crystals in a step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam")
    units: int = Field(default=64, gt=0, description="width of M3GNet")
    blocks: int = Field(default=3, gt=0, description="depth of M3GNet")
    cutoff: float = Field(default=5.0, gt=0, description="Å to which atoms are neighbours")
    device: str = Field(default="cpu", description="torch device")
