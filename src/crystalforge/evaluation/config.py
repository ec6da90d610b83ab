"""What the evaluation stage can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from crystalforge.evaluation.protocols import PROTOCOLS


class EvaluateConfig(BaseModel):
    """Settings of an evaluation.

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
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling")
    processes: int = Field(default=1, ge=1, description="processes that match structures")
    nearest: bool = Field(default=True, description="look up the nearest known crystal of every sample")
    gallery: int = Field(default=12, ge=0, description="crystals shown in three dimensions at the top of the report")
    candidates: int = Field(default=300, ge=1, description="rows of the report's table of candidates")

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"unknown protocol {unknown[0]!r}; known: {', '.join(sorted(PROTOCOLS))}")
        if len(set(names)) != len(names):
            raise ValueError("a protocol is named twice")
        return names
