"""What a screening can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.potentials.config import CHGNetConfig, DIEPConfig, PotentialConfig, SevenNetConfig
from crystalforge.rewards.config import EHullReward, Guards, RewardConfig


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Record):
    """When a screening ends although its wish is not met; what has been found until then is ranked."""

    crystals: int = Field(default=20_000, ge=1, description="crystals drawn")
    calls: int | None = Field(default=None, ge=1, description="crystals scored, each judge counting; None: no bound")
    seconds: float | None = Field(default=None, gt=0, description="of this call; None: no bound")


class Wish(_Record):
    """A property that a crystal shall have, besides being stable."""

    reward: RewardConfig = Field(description="what values it; asked of the relaxed crystals")
    at_least: float = Field(description="value from which the wish is fulfilled")


class ScreenConfig(_Record):
    """Settings of a screening.

    >>> ScreenConfig(top=5).judges[0].potential.kind
    'chgnet'
    """

    top: int = Field(default=20, ge=1, description="crystals wanted that all judges find below `limit`")
    limit: float = Field(default=0.1, description="eV/atom of E_hull after relaxing that every judge must find")
    constraints: Constraints | None = Field(default=None, description="what the crystals are made of")
    spacegroups: tuple[Annotated[int, Field(ge=1, le=230)], ...] | None = Field(
        default=None,
        min_length=1,
        description="these in turn; None: as often as in training, with constraints as probable as the model has them",
    )
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling")
    geometry: Guards = Field(
        default=Guards(min_bond=0.75, min_elements=2, max_atoms=60),
        description="what a crystal must satisfy before anything is computed, and again after relaxing",
    )
    judges: tuple[EHullReward, ...] = Field(
        default=(
            EHullReward(name="chgnet"),
            EHullReward(name="7net-0", potential=SevenNetConfig(), hull="own"),
        ),
        min_length=1,
        description="who judges; the first sees every crystal of sound geometry, the others what it lets pass",
    )
    confirm: tuple[EHullReward, ...] = Field(
        default=(
            EHullReward(name="chgnet-r2scan", potential=CHGNetConfig(model="r2scan"), hull="own"),
            EHullReward(name="diep", potential=DIEPConfig(), hull="own"),  # another network, other data
        ),
        description="judges that take no part: asked of the finished list alone",
    )
    relaxer: PotentialConfig = Field(default_factory=CHGNetConfig, description="what moves cell and atoms")
    fmax: float = Field(default=0.05, gt=0, description="eV/Å at which a relaxation ends")
    steps: int = Field(default=200, ge=1, description="steps of a relaxation at most")
    keep_symmetry: bool = Field(
        default=False, description="relax within the space group; what falls when shaken stays as it is and says so"
    )
    shake: float = Field(
        default=0.03,
        ge=0,
        description="Å by which atoms, and the like of it the cell, are moved at random once a crystal near the hull "
        "is at rest, before it is relaxed again without symmetry: it may have been a saddle; 0: not",
    )
    promising: float = Field(
        default=0.4, description="eV/atom of E_hull as generated up to which the first judge lets a crystal be relaxed"
    )
    wish: Wish | None = Field(default=None, description="a property besides; None: stability alone")
    known: Path | None = Field(
        default=None,
        description="known crystals besides the embedded ones and the model's training set: parquet of structures",
    )
    matcher: MatcherSettings = Field(default=MatcherSettings(), description="when two crystals are one")
    budget: Budget = Field(default=Budget(), description="when to end without having met the wish")
    round: int = Field(
        default=64, ge=1, description="crystals drawn at a time; a budget of crystals is met in whole rounds"
    )
    piece: int = Field(default=16, ge=1, description="crystals relaxed at a time: what an interruption can lose")
    processes: int | None = Field(default=None, ge=1, description="worker processes; None: one per core")

    @model_validator(mode="after")
    def _names(self) -> ScreenConfig:
        names = [judge.name or judge.kind for judge in (*self.judges, *self.confirm)]
        if len(set(names)) < len(names):
            raise ValueError(f"judges need names that differ: {', '.join(names)}")
        return self

    @property
    def judge_names(self) -> list[str]:
        """Of those that judge, in their order."""
        return [judge.name or judge.kind for judge in self.judges]

    @property
    def confirm_names(self) -> list[str]:
        """Of those that take no part."""
        return [judge.name or judge.kind for judge in self.confirm]
