"""Settings of reinforcement fine-tuning. Defaults are the paper's (arXiv 2504.02367, appendix C)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.model.constraints.constraints import Constraints
from crystalforge.rewards.config import RelaxConfig, RewardConfig
from crystalforge.training.config import EngineConfig

Algorithm = Literal["ppo", "balance", "reinforce", "rloo", "grpo", "dpo", "sft"]
Method = Literal["best_of_n", "resample", "mcmc"]  # of searching with an unchanged model
GROUPED: frozenset[str] = frozenset({"grpo", "dpo"})


class MonitorConfig(BaseModel):
    """When to look at the policy through other eyes, and what ends the run. A limit of null is not watched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=5, ge=1, description="steps between two looks")
    held_out: RewardConfig | None = Field(
        default=None,
        description="judges the looks' crystals, in process, and is never trained on; give it a potential that the "
        "reward does not use",
    )
    max_gap: float | None = Field(
        default=1.0,
        gt=0,
        description="how much more the reward may have risen than the held-out score on the same crystals, in "
        "standard deviations of each at the first look; needs a held-out reward",
    )
    min_unique: float | None = Field(
        default=0.5, ge=0, le=1, description="least share of unique crystals, as a fraction of the first look's"
    )
    max_kl: float | None = Field(default=100.0, gt=0, description="largest KL(policy || base) in nats per crystal")
    max_floors: float | None = Field(default=None, ge=0, le=1, description="largest share of floored crystals")
    max_entropy_loss: float | None = Field(
        default=None, gt=0, description="largest fall of the letters' or the elements' entropy, in nats per crystal"
    )
    max_worse: int | None = Field(
        default=None,
        ge=1,
        description="looks in a row at which the objective E[r] - tau KL may lie below the base's; the policy of the "
        "best objective is then kept",
    )
    standard_errors: float = Field(
        default=2.0, ge=0, description="standard errors by which an estimate must lie beyond its limit"
    )


class DriftConfig(BaseModel):
    """What a policy must not gain by; see `crystalforge.rl.drift`. All off by default; nothing recorded changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    abstain: bool = Field(
        default=False,
        description="learn nothing from crystals whose chemical system has too few known phases (status sparse_hull, "
        "see the reward's min_compounds), instead of learning that they are worth the floor",
    )
    compositions: float = Field(
        default=0.0,
        ge=0,
        description="a formula that came n times before, in the batch and the run, is worth this times tau ln(1 + n) "
        "less",
    )
    structures: float = Field(
        default=0.0,
        ge=0,
        description="the same for a formula prototype: space group, and which letters share an element",
    )
    coverage: float = Field(
        default=0.0,
        ge=0,
        description="price, in tau for one nat, of leaving the first step's shares of the elements and of the number "
        "of elements",
    )

    @property
    def active(self) -> bool:
        """Whether anything is switched on."""
        return self.abstain or self.looks_back

    @property
    def looks_back(self) -> bool:
        """Whether a crystal's worth depends on earlier steps."""
        return max(self.compositions, self.structures, self.coverage) > 0


class SurrogateConfig(BaseModel):
    """How much is learned from crystals that nobody scored; see `crystalforge.rl.waves`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    waves: int = Field(default=10, ge=0, description="how often a step draws unscored crystals and learns from them")
    batch_size: int = Field(
        default=2048, ge=2, description="crystals drawn a wave, those that the guards refuse included"
    )
    minibatch: int = Field(default=256, ge=2, description="crystals an optimiser step, roughly")
    spacegroup_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="how far, at each wave, the shares in which space groups are asked for go towards what is best for "
        "the policy as it is; 0: they stay those of the base, as in the paper",
    )


def switched_to(algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of fine-tuning for another algorithm: what only balance can have is left out for the others.

    >>> switched_to("ppo", {"algorithm": "balance", "surrogate": {}})
    {'algorithm': 'ppo', 'surrogate': None}
    """
    own = {} if algorithm == "balance" else {"surrogate": None}
    return {**settings, "algorithm": algorithm, **own}


class FinetuneConfig(BaseModel):
    """How to fine-tune a model against a reward.

    >>> FinetuneConfig(algorithm="rloo", batch_size=64).passes
    1
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Algorithm = Field(default="ppo", description="rule of improvement")
    steps: int = Field(default=100, ge=0, description="batches to draw, score and learn from")
    batch_size: int = Field(default=100, ge=2, description="crystals per step")
    tau: float = Field(default=0.1, gt=0, description="weight of KL(policy || base) against the reward; DPO's beta")
    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam")
    filter: bool = Field(
        default=False,
        description="draw until batch_size crystals pass the reward's guards: what these refuse costs no reward call "
        "and counts against no budget; it is learned from at the floor, like any other crystal",
    )
    fade: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="rate of a step's last optimiser step as a part of its first's: a long step ends quietly, and "
        "the next crystals come from a policy without the noise of large strides; 1: constant",
    )
    kept: int = Field(
        default=256, ge=0, description="BALANCE: crystals of earlier steps, at random, learned from beside a step's own"
    )
    refused: float = Field(
        default=0.25,
        ge=0,
        description="BALANCE with filter: refused crystals learned from, as a part of those judged, to teach validity",
    )
    lowest: float | None = Field(
        default=-0.5,
        description="BALANCE: rewards below this are learned as this: how bad the bad ones are need not be known; "
        "null: as they are",
    )
    surrogate: SurrogateConfig | None = Field(
        default=None,
        description="BALANCE with filter: learn from unscored crystals too, by a guess of the reward that is fitted to "
        "the scored ones; `kept`, `refused` and `minibatches` then say nothing; null: from scored ones alone",
    )
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="hand over a moving average of the weights that keeps this share at each optimiser step; 0: the "
        "last weights",
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="steps over which the rate rises to its value: Adam's first step is as long as its rate whatever "
        "the gradient's noise, and a small model is thrown far from the base by it (not in the paper)",
    )
    inner_steps: int = Field(
        default=3, ge=1, description="passes over each batch; reinforce and rloo make one, whatever is asked"
    )
    minibatches: int = Field(default=1, ge=1, description="optimiser steps per pass")
    clip: float = Field(default=0.2, gt=0, lt=1, description="half-width of the ratio's trust interval (PPO, GRPO)")
    baseline_decay: float = Field(default=0.95, ge=0, lt=1, description="of the moving baseline (PPO, REINFORCE)")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest global norm of the gradient")
    normalize_advantage: bool = Field(
        default=False, description="divide advantages by their spread over the batch (not in the paper)"
    )
    kl_stop: float | None = Field(
        default=None, gt=0, description="end the passes over a batch once KL(sampling policy || policy) exceeds this"
    )
    group_size: int = Field(default=10, ge=2, description="crystals per drawn space group (GRPO, DPO)")
    divide_by_spread: bool = Field(default=True, description="GRPO: divide by the group's standard deviation")
    keep_component: str = Field(
        default="e_above_hull", description="SFT: component of the reward that decides what is kept"
    )
    keep_below: float = Field(default=0.1, description="SFT: keep crystals whose component lies below this")
    pool_size: int = Field(default=2000, ge=1, description="SFT: how many of the latest kept crystals to learn from")
    relax: RelaxConfig | None = Field(
        default=None,
        description="SFT: relax with the reward's potential first, judge again, keep and learn the relaxed crystal; "
        "null: as drawn",
    )
    relax_below: float | None = Field(
        default=None,
        description="SFT: relax only crystals whose component lies below this as drawn; null: all that can be judged",
    )

    pareto: dict[str, Literal["max", "min"]] | None = Field(
        default=None,
        description="components of the reward, each with what is better of it, whose Pareto set over the whole run is "
        "kept in pareto.parquet, such as {e_above_hull: min, band_gap: max}",
    )
    spacegroups: tuple[int, ...] | None = Field(
        default=None, description="draw from these space groups only, in the training set's proportions; null: all"
    )
    constraints: Constraints | None = Field(default=None, description="what the sampler may draw")
    max_scored: int | None = Field(default=None, ge=1, description="stop before more crystals than this are scored")
    max_seconds: float | None = Field(default=None, gt=0, description="stop after this long, earlier runs included")

    checkpoint_every: int = Field(default=5, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="how many to keep")
    piece_tokens: int = Field(
        default=512,
        ge=1,
        description="tokens per forward and backward pass: bounds memory; does not change the result's law",
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="what makes the steps, and where")
    drift: DriftConfig = Field(default=DriftConfig(), description="what the policy must not gain by")
    monitor: MonitorConfig = Field(default=MonitorConfig(), description="what is watched, and what ends the run")

    @model_validator(mode="after")
    def _coherent(self) -> FinetuneConfig:
        if self.spacegroups is not None:
            wrong = [g for g in self.spacegroups if not 1 <= g <= 230]
            if wrong or not self.spacegroups:
                raise ValueError(f"space groups are numbered 1 to 230, got {list(self.spacegroups)}")
        if self.minibatches > self.batch_size:
            raise ValueError(f"{self.minibatches} minibatches of a batch of {self.batch_size}: some would be empty")
        if self.relax is not None and self.algorithm != "sft":
            raise ValueError(f"{self.algorithm} learns from crystals as drawn: relax is for sft")
        if self.drift.active and self.algorithm == "sft":
            raise ValueError("sft learns from what is kept, whatever it is worth: drift is for the others")
        if self.surrogate is not None and not (self.algorithm == "balance" and self.filter):
            raise ValueError(
                "surrogate is for algorithm balance with filter: true, whose guards sort out what is guessed"
            )
        if self.surrogate is not None and self.drift.active:
            raise ValueError(
                "what nobody scored is worth what the surrogate guesses: drift is for scored crystals alone"
            )
        if self.grouped and self.filter:
            raise ValueError(f"{self.algorithm} compares whole groups of crystals: filter would tear them apart")
        if self.grouped and self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of group_size {self.group_size}, which "
                f"{self.algorithm} needs"
            )
        return self

    @property
    def grouped(self) -> bool:
        """Whether the algorithm compares crystals of one space group with each other."""
        return self.algorithm in GROUPED

    @property
    def scored_per_step(self) -> int:
        """Crystals that one step may have scored, at most."""
        return self.batch_size * (1 if self.relax is None else 2)

    @property
    def passes(self) -> int:
        """Optimiser passes over a batch: one where the estimator holds for the sampling policy only."""
        return 1 if self.algorithm in ("reinforce", "rloo") else self.inner_steps
