"""What the evaluation stage can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from crystalforge.evaluation.protocols import PROTOCOLS
from crystalforge.model.sampling.config import SamplingConfig
from crystalforge.potentials.config import CHGNetConfig, PotentialConfig
from crystalforge.rewards.config import RewardConfig

MOST_HELD_OUT = 3  # held-out judges: each has columns and lines of the summary of its own


class RelaxSettings(BaseModel):
    """Which crystals are relaxed, by what and how far; the reward and the held-out judges then see them too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    potential: PotentialConfig = Field(default_factory=CHGNetConfig, description="what moves cell and atoms")
    crystals: int | None = Field(
        default=None,
        ge=1,
        description="at most so many of each model and seed, chosen by the seed; figures of relaxed crystals have this "
        "denominator. None: all",
    )
    steps: int = Field(default=200, ge=1, description="steps of FIRE at most; what is reached then is judged")
    fmax: float = Field(default=0.1, gt=0, description="eV/Å at which a relaxation ends")
    piece: int = Field(default=4, ge=1, description="crystals relaxed between two writes: what an interruption loses")


class CoverageSettings(BaseModel):
    """Comparison of generated with real crystals as sets: coverage and property distances, as CDVAE has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["train", "val", "test"] = Field(default="test", description="the real crystals: a split of the data")
    crystals: int = Field(default=500, ge=1, description="at most so many of each side, chosen by the seed")


class EvaluateConfig(SamplingConfig):
    """Settings of an evaluation; those of sampling are the law that its crystals are drawn from.

    >>> EvaluateConfig(samples=200).protocols
    ('crystalformer-rl',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(default=1000, ge=1, description="crystals to draw from each model and seed")
    chunk: int = Field(
        default=256, ge=1, description="crystals drawn, scored and written at a time; the unit of resuming"
    )
    protocols: tuple[str, ...] = Field(
        default=("crystalformer-rl",), min_length=1, description="rules to judge by; the first one is the headline"
    )
    spacegroups: tuple[Annotated[int, Field(ge=1, le=230)], ...] | None = Field(
        default=None, min_length=1, description="draw from these space groups only; None: as in the training set"
    )
    held_out: tuple[RewardConfig, ...] = Field(
        default=(),
        max_length=MOST_HELD_OUT,
        description="rewards that nothing was trained on, each with its own potential and hull: second opinions",
    )
    relax: RelaxSettings | None = Field(default=None, description="relax the crystals as well; None: do not")
    coverage: CoverageSettings | None = Field(default=None, description="compare with real crystals as sets; None: no")
    reference: Path | None = Field(
        default=None,
        description="known crystals that novelty is measured against: output of `ingest`, all its splits; None: the "
        "training split",
    )
    processes: int = Field(default=1, ge=1, description="processes that match structures")
    nearest: bool = Field(default=True, description="look up the nearest known crystal of every sample")
    gallery: int = Field(default=12, ge=0, description="crystals shown in three dimensions at the top of the report")
    candidates: int = Field(default=300, ge=1, description="rows of the report's table of candidates")

    @property
    def law(self) -> SamplingConfig:
        """The law that crystals are drawn from."""
        return SamplingConfig(**self.options())

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"unknown protocol {unknown[0]!r}; known: {', '.join(sorted(PROTOCOLS))}")
        if len(set(names)) != len(names):
            raise ValueError("a protocol is named twice")
        return names
