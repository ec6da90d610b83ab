"""What a property predictor learns, and from what; apart from its training, so that reading it does not load torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

VOIGT_COLUMNS = ("eps_xx", "eps_yy", "eps_zz", "eps_yz", "eps_xz", "eps_xy")


class PredictorConfig(BaseModel):
    """What to learn from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(description="parquet or CSV: lattice, atomic_numbers, frac_coords, or cif, or poscar; targets")
    targets: tuple[str, ...] = Field(default=VOIGT_COLUMNS, min_length=1, description="columns to predict")
    bounds: tuple[float, float] | None = Field(
        default=(-10.0, 100.0), description="a row with a target outside is left out; None: keep all"
    )
    fractions: tuple[float, float, float] = Field(default=(0.8, 0.1, 0.1), description="train, val, test")
    epochs: int = Field(default=100, gt=0, description="passes over the training split")
    batch_size: int = Field(default=64, gt=0, description="crystals in a step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam")
    units: int = Field(default=64, gt=0, description="width of M3GNet")
    blocks: int = Field(default=3, gt=0, description="depth of M3GNet")
    cutoff: float = Field(default=5.0, gt=0, description="Å to which atoms are neighbours")
    device: str = Field(default="cpu", description="torch device")
