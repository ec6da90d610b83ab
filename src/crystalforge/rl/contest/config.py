"""Settings of the contest of all algorithms."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.rewards.config import RewardConfig
from crystalforge.rl.config import Algorithm, Method


class ContestConfig(BaseModel):
    """Who takes part, and what each may spend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithms: tuple[Algorithm, ...] = Field(
        default=("ppo", "reinforce", "rloo", "grpo", "dpo", "sft"), description="rules that change the model"
    )
    searches: tuple[Method, ...] = Field(
        default=("best_of_n", "resample", "mcmc"), description="searches with the unchanged model"
    )
    taus: tuple[float, ...] = Field(
        default=(), description="further strengths of the KL term for the first algorithm, beside finetune.tau"
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="each takes part once per seed")
    scored: int = Field(default=2560, ge=1, description="crystals that each may have scored, the budget")
    judged: int = Field(default=1024, ge=2, description="fresh crystals that a model is judged by, beyond the budget")
    held_out: RewardConfig | None = Field(
        default=None, description="judges the same crystals as the reward does in the end, in process; guides nobody"
    )
    keep: int = Field(default=128, ge=2, description="crystals that a search returns")
    settings: dict[Algorithm, dict[str, Any]] = Field(
        default_factory=dict, description="what an algorithm needs to have otherwise than section `finetune` says"
    )

    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="further learners, by the name under which they stand in the table: what each has otherwise than "
        "section `finetune` says, such as {surrogate: {algorithm: balance, filter: true, surrogate: {}}}",
    )

    @model_validator(mode="after")
    def _distinct(self) -> ContestConfig:
        for name in ("algorithms", "searches", "seeds", "taus"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice: {list(values)}")
        for name in self.variants:
            if name in (*self.algorithms, *self.searches, "base"):
                raise ValueError(f"variants: {name} takes part already, choose another name")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"variants: {name!r} is to name a folder: letters, digits, - and _")
        if self.taus and not self.algorithms:
            raise ValueError("taus are for the first algorithm, and there is none")
        return self
